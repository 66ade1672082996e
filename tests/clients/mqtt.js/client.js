// MQTT.js behind the protocol of tests/harness/client.rs.
"use strict";

const fs = require("node:fs");
const readline = require("node:readline");
const mqtt = require("mqtt");

const [host, port, version, ...rest] = process.argv.slice(2);
const options = Object.fromEntries(rest.map((option) => option.split(/=(.*)/s)));
const say = (...words) => process.stdout.write(words.join(" ") + "\n");

async function connect(clientId, kept, willTopic, willPayload) {
  const keep = kept === "keep";
  const client = mqtt.connect({
    host,
    port: Number(port),
    protocol: options.ca ? "mqtts" : "mqtt",
    ca: options.ca && fs.readFileSync(options.ca),
    protocolVersion: version === "3" ? 4 : 5,
    clientId,
    clean: !keep,
    properties: version === "5" ? { sessionExpiryInterval: keep ? 300 : 0 } : undefined,
    username: options.user,
    password: options.password,
    reconnectPeriod: 0,
    will: willTopic && { topic: willTopic, payload: willPayload, qos: 1, retain: false },
  });
  client.on("message", (topic, payload, packet) => say("message", packet.qos, Number(packet.retain), topic, payload));
  await new Promise((done) => {
    client.once("connect", (connack) => {
      say("connected", Number(connack.sessionPresent));
      done();
    });
    client.once("error", (error) => {
      say("refused", error.message);
      done();
    });
  });
  return client;
}

async function main() {
  let client;
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const [command, ...words] = line.split(" ");
    switch (command) {
      case "connect":
        client = await connect(...words);
        break;
      case "publish": {
        const [qos, retain, topic, payload] = words;
        await client.publishAsync(topic, payload, { qos: Number(qos), retain: retain === "1" });
        say("published");
        break;
      }
      case "subscribe": {
        const [qos, filter] = words;
        await client.subscribeAsync(filter, { qos: Number(qos) });
        say("subscribed");
        break;
      }
      case "disconnect":
        await client.endAsync();
        say("disconnected");
        break;
      case "die":
        process.kill(process.pid, "SIGKILL");
        break;
      default:
        throw new Error(`not understood: ${line}`);
    }
  }
  process.exit();
}

main();
