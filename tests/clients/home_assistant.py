"""Renders the templates of Home Assistant's example on what a real node publishes.

python home_assistant.py PORT PACKAGE.yaml

What Home Assistant does is done by hand here: the script's action publishes, sensors and automations take what comes on
their topics, and every template is rendered with the names that Home Assistant gives it.
"""

import json
import queue
import sys

import paho.mqtt.client as mqtt
import yaml
from jinja2 import StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

port, package = int(sys.argv[1]), sys.argv[2]
with open(package, encoding="utf-8") as file:
    config = yaml.safe_load(file)
jinja = ImmutableSandboxedEnvironment(undefined=StrictUndefined)
jinja.filters["to_json"] = lambda value: json.dumps(value, ensure_ascii=False)


def render(template, **names):
    return jinja.from_string(template).render(**names).strip()


class Context:
    id = "01JDEF0123456789ABCDEFGHJK"


sensors = {sensor["name"]: sensor for sensor in config["mqtt"]["sensor"]}
triggers = {automation["id"]: automation["triggers"][0] for automation in config["automation"]}
topics = {sensor["state_topic"] for sensor in sensors.values()} | {trigger["topic"] for trigger in triggers.values()}
received = queue.Queue()
subscribed = queue.Queue()
client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv311)
client.on_message = lambda c, u, message: received.put(message)
client.on_subscribe = lambda *_: subscribed.put(True)
client.connect("localhost", port)
client.loop_start()
client.subscribe([(topic, 1) for topic in topics])
subscribed.get(timeout=30)


waiting = []


def wait_for(topic, wanted=lambda body: True):
    """The next message on a topic; what comes on others meanwhile is kept for the next call that waits for it."""
    while True:
        for message in waiting:
            if mqtt.topic_matches_sub(topic, message.topic) and wanted(json.loads(message.payload)):
                waiting.remove(message)
                return json.loads(message.payload)
        waiting.append(received.get(timeout=30))


def show(name, body):
    """A sensor's state and attributes after a message."""
    sensor = sensors[name]
    names = {"value": json.dumps(body), "value_json": body}
    state = render(sensor["value_template"], **names)
    assert len(state) <= 255, state
    attributes = {}
    if "json_attributes_template" in sensor:
        assert sensor["json_attributes_topic"] == sensor["state_topic"]
        attributes = json.loads(render(sensor["json_attributes_template"], **names))
    return state, attributes


class Trigger:
    def __init__(self, body):
        self.payload_json = body


def notes(automation_id, body):
    """What an automation would notify of; None if its conditions do not hold."""
    automation = next(a for a in config["automation"] if a["id"] == automation_id)
    for condition in automation.get("conditions", []):
        if render(condition["value_template"], trigger=Trigger(body)) != "True":
            return None
    data = automation["actions"][0]["data"]
    return {name: render(text, trigger=Trigger(body)) for name, text in data.items()}


def ask(question):
    action = config["script"]["ask_phi_edge"]["sequence"][0]
    assert action["action"] == "mqtt.publish", action
    data = action["data"]
    client.publish(data["topic"], render(data["payload"], context=Context, question=question), qos=data["qos"])
    return wait_for(sensors["phi-edge answer"]["state_topic"])


status = wait_for(sensors["phi-edge"]["state_topic"], lambda body: body["state"] == "ready")
assert show("phi-edge", status) == ("ready", {"reason": None, "model": status["model"]})
stats = wait_for(sensors["phi-edge tokens per second"]["state_topic"])
assert float(show("phi-edge tokens per second", stats)[0]) >= 0

final = ask('Who are "you"?\nSay it.')
state, attributes = show("phi-edge answer", final)
assert state == "stop" and attributes == {"text": final["text"], "error": ""}, (state, attributes)
assert notes("phi_edge_show_answer", final)["message"] == final["text"].strip()

# The same id with another body: an error.
error = ask("Something else")
state, attributes = show("phi-edge answer", error)
assert state == "bad_request" and attributes == {"text": "", "error": error["error"]["message"]}, (state, attributes)
assert notes("phi_edge_show_answer", error)["message"].startswith("No answer: id:")

for n in range(3):
    client.publish("plant/press-07/temperature", json.dumps({"celsius": 20 + n}), qos=1)
event = wait_for(triggers["phi_edge_show_event"]["topic"])
shown = notes("phi_edge_show_event", event)
assert shown["title"] == "heat press-07" and shown["message"], shown
without_words = {name: value for name, value in event.items() if name != "text"}
assert notes("phi_edge_show_event", without_words)["message"].endswith(" messages")
event["window"]["messages"] = 0
assert notes("phi_edge_show_event", event) is None
client.loop_stop()
