"""Asks a phi-edge node over MQTT 5 and prints the answer as it grows. Ctrl-C takes the request back.

    pip install -r requirements.txt
    python ask.py --node press-07 "Why is the sky blue?"
"""

import argparse
import json
import queue
import sys
import time
import uuid

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

arguments = argparse.ArgumentParser()
arguments.add_argument("--host", default="localhost")
arguments.add_argument("--port", type=int, default=1883)
arguments.add_argument("--node", required=True, help="the node's name: phi-edge/v1/NODE is its base topic")
arguments.add_argument("--client", default="python", help="who asks: the user name at the broker, where it has access rules")
arguments.add_argument("--password")
arguments.add_argument("--max-tokens", type=int, default=256)
arguments.add_argument("--temperature", type=float, default=0, help="0 always takes the likeliest word; higher is more varied")
arguments.add_argument("--seed", type=int, default=0, help="the same seed gives the same answer")
arguments.add_argument("--cancel-after", type=int, metavar="CHUNKS", help="take the request back after so many chunks")
arguments.add_argument("question")
args = arguments.parse_args()

base = f"phi-edge/v1/{args.node}"
request_id = f"py-{uuid.uuid4().hex[:12]}"
response_topic = f"{base}/response/{args.client}/{request_id}"
# Correlation data comes back with each reply, byte by byte; here it only shows that it does.
correlation = uuid.uuid4().bytes
replies = queue.Queue()


def on_connect(client, userdata, flags, reason, properties):
    if reason.is_failure:
        replies.put(("refused", {"message": str(reason)}))
    else:
        client.subscribe(response_topic, qos=1)


def on_subscribe(client, userdata, mid, reasons, properties):
    if any(reason.is_failure for reason in reasons):
        replies.put(("refused", {"message": f"the broker refuses the subscription: {reasons[0]}"}))
    else:
        # Also after each reconnection: the same id and body again never makes a second answer.
        ask(client)


def on_message(client, userdata, message):
    kind = dict(message.properties.UserProperty)["kind"]
    if getattr(message.properties, "CorrelationData", None) == correlation:
        replies.put((kind, json.loads(message.payload)))


def ask(client):
    properties = Properties(PacketTypes.PUBLISH)
    properties.ContentType = "application/json"
    properties.ResponseTopic = response_topic
    properties.CorrelationData = correlation
    request = {"id": request_id, "prompt": args.question, "max_tokens": args.max_tokens, "stream": True}
    request |= {"temperature": args.temperature, "seed": args.seed}
    client.publish(f"{base}/request/{args.client}", json.dumps(request), qos=1, properties=properties)


def cancel(client):
    client.publish(f"{base}/cancel/{args.client}", json.dumps({"id": request_id}), qos=1)


def answer(client):
    """Prints what comes, and returns the outcome."""
    attempt, shown, chunks = 1, "", 0
    while True:
        try:
            # In pieces, so that Ctrl-C is heard everywhere.
            kind, body = replies.get(timeout=1)
        except queue.Empty:
            continue
        except KeyboardInterrupt:
            cancel(client)
            continue
        if kind == "chunk":
            if body["attempt"] != attempt:
                print("\n[the node has started again; so does the answer]")
                attempt, shown = body["attempt"], ""
            shown += body["delta"]
            print(body["delta"], end="", flush=True)
            chunks += 1
            if chunks == args.cancel_after:
                cancel(client)
        elif kind == "final":
            # Chunks may get lost; the final reply has all of the text.
            rest = body["text"][len(shown):] if body["text"].startswith(shown) else "\n" + body["text"]
            print(rest)
            return kind, body
        elif kind == "error" and body["error"]["code"] in ("busy", "unavailable"):
            time.sleep(body["error"].get("retry_after_ms", 1000) / 1000)
            ask(client)
        else:
            return kind, body


client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
client.on_connect, client.on_subscribe, client.on_message = on_connect, on_subscribe, on_message
if args.password is not None:
    client.username_pw_set(args.client, args.password)
client.connect(args.host, args.port)
client.loop_start()
kind, body = answer(client)
client.disconnect()
client.loop_stop()
if kind != "final":
    sys.exit(f"{kind}: {body.get('error', body)}")
print(f"[{body['finish_reason']}, {body['usage']['completion_tokens']} tokens, by {body['model']}]", file=sys.stderr)
