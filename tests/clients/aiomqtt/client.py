"""aiomqtt behind the protocol of tests/harness/client.rs."""

import asyncio
import os
import sys

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

HOST, PORT, VERSION = sys.argv[1:4]
OPTIONS = dict(option.split("=", 1) for option in sys.argv[4:])


def say(*words):
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def make_client(client_id, kept, will_topic=None, will_payload=None):
    keep = kept == "keep"
    if VERSION == "3":
        session = {"protocol": aiomqtt.ProtocolVersion.V311, "clean_session": not keep}
    else:
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = 300 if keep else 0
        session = {"protocol": aiomqtt.ProtocolVersion.V5, "clean_start": not keep, "properties": properties}
    return aiomqtt.Client(
        HOST,
        int(PORT),
        identifier=client_id,
        username=OPTIONS.get("user"),
        password=OPTIONS.get("password"),
        tls_params=aiomqtt.TLSParameters(ca_certs=OPTIONS["ca"]) if "ca" in OPTIONS else None,
        will=aiomqtt.Will(will_topic, will_payload, qos=1) if will_topic else None,
        **session,
    )


async def print_messages(client):
    async for message in client.messages:
        say("message", message.qos, int(message.retain), message.topic, message.payload.decode())


async def main():
    client = messages = None
    while line := await asyncio.to_thread(sys.stdin.readline):
        match line.rstrip("\n").split(" "):
            case ["connect", *arguments]:
                client = make_client(*arguments)
                try:
                    await client.__aenter__()
                except aiomqtt.MqttError as error:
                    say("refused", error)
                    continue
                messages = asyncio.create_task(print_messages(client))
                say("connected", "?")  # it does not hand on what CONNACK says of the session
            case ["publish", qos, retain, topic, payload]:
                await client.publish(topic, payload, qos=int(qos), retain=retain == "1")
                say("published")
            case ["subscribe", qos, topic_filter]:
                await client.subscribe(topic_filter, qos=int(qos))
                say("subscribed")
            case ["disconnect"]:
                messages.cancel()
                await client.__aexit__(None, None, None)
                say("disconnected")
            case ["die"]:
                os._exit(0)
            case _:
                sys.exit(f"not understood: {line}")
    os._exit(0)


asyncio.run(main())
