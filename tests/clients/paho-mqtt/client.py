"""paho-mqtt behind the protocol of tests/harness/client.rs."""

import os
import sys

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

HOST, PORT, VERSION = sys.argv[1:4]
OPTIONS = dict(option.split("=", 1) for option in sys.argv[4:])


def say(*words):
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def on_connect(client, _userdata, flags, reason, _properties):
    if reason.is_failure:
        say("refused", reason)
        client.disconnect()
    else:
        say("connected", int(flags.session_present))


def on_message(_client, _userdata, message):
    say("message", message.qos, int(message.retain), message.topic, message.payload.decode())


def connect(client_id, kept, will_topic=None, will_payload=None):
    keep = kept == "keep"
    if VERSION == "3":
        client = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2, client_id=client_id, clean_session=not keep, protocol=mqtt.MQTTv311
        )
        session = {}
    else:
        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=client_id, protocol=mqtt.MQTTv5)
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = 300 if keep else 0
        session = {"clean_start": not keep, "properties": properties}
    client.on_connect = on_connect
    client.on_message = on_message
    client.on_subscribe = lambda *_: say("subscribed")
    if will_topic:
        client.will_set(will_topic, will_payload, qos=1)
    if "user" in OPTIONS:
        client.username_pw_set(OPTIONS["user"], OPTIONS.get("password"))
    if "ca" in OPTIONS:
        client.tls_set(ca_certs=OPTIONS["ca"])
    client.connect(HOST, int(PORT), **session)
    client.loop_start()
    return client


client = None
for line in sys.stdin:
    match line.rstrip("\n").split(" "):
        case ["connect", *arguments]:
            client = connect(*arguments)
        case ["publish", qos, retain, topic, payload]:
            client.publish(topic, payload, int(qos), retain == "1").wait_for_publish()
            say("published")
        case ["subscribe", qos, topic_filter]:
            client.subscribe(topic_filter, int(qos))
        case ["disconnect"]:
            client.disconnect()
            client.loop_stop()
            say("disconnected")
        case ["die"]:
            os._exit(0)
        case _:
            sys.exit(f"not understood: {line}")
