"""A client with Eclipse Paho: asks with MQTT 5's response topic and correlation data, and puts the chunks together.

python paho_stream.py PORT BASE
"""

import json
import sys
import threading

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

port, base = int(sys.argv[1]), sys.argv[2]
topic = f"{base}/response/paho/1"
subscribed, done = threading.Event(), threading.Event()
chunks, finals = [], []


def on_message(client, userdata, message):
    kinds = [value for name, value in message.properties.UserProperty if name == "kind"]
    assert len(kinds) == 1, kinds
    assert message.properties.CorrelationData == b"\x00\x01paho", message.properties
    body = json.loads(message.payload)
    assert body["id"] == "paho-1", body
    if kinds[0] == "chunk":
        assert body["seq"] == len(chunks), body
        chunks.append(body["delta"])
    else:
        finals.append((kinds[0], body))
        done.set()


client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
client.on_message = on_message
client.on_subscribe = lambda *_: subscribed.set()
client.on_connect = lambda c, *_: c.subscribe(topic, qos=1)
client.connect("localhost", port)
client.loop_start()
assert subscribed.wait(30), "no subscription"
properties = Properties(PacketTypes.PUBLISH)
properties.ResponseTopic = topic
properties.CorrelationData = b"\x00\x01paho"
properties.ContentType = "application/json"
request = {"id": "paho-1", "messages": [{"role": "user", "content": "Who are you?"}], "stream": True}
client.publish(f"{base}/request", json.dumps(request), qos=1, properties=properties)
assert done.wait(60), "no answer"
client.loop_stop()
kind, final = finals[0]
assert kind == "final", final
assert "".join(chunks) == final["text"], (chunks, final)
print(final["text"])
