// Asks a phi-edge node over MQTT 5 and prints the answer as it grows. Ctrl-C takes the request back.
//
//     npm install
//     node ask.js press-07 "Why is the sky blue?" [mqtt://localhost:1883]
'use strict';

const { randomUUID } = require('node:crypto');
const mqtt = require('mqtt');

const [node, question, url = 'mqtt://localhost:1883'] = process.argv.slice(2);
if (!question) {
  console.error('usage: node ask.js NODE QUESTION [URL]');
  process.exit(2);
}

const base = `phi-edge/v1/${node}`;
// Who asks: the user name at the broker, where it has access rules.
const client = process.env.PHI_EDGE_CLIENT ?? 'node';
const id = `js-${randomUUID().slice(0, 8)}`;
const responseTopic = `${base}/response/${client}/${id}`;
const correlationData = Buffer.from(randomUUID());

const broker = mqtt.connect(url, {
  protocolVersion: 5,
  username: process.env.PHI_EDGE_PASSWORD && client,
  password: process.env.PHI_EDGE_PASSWORD,
});

function ask() {
  const request = { id, prompt: question, stream: true, max_tokens: Number(process.env.MAX_TOKENS ?? 256) };
  broker.publish(`${base}/request/${client}`, JSON.stringify(request), {
    qos: 1,
    properties: { contentType: 'application/json', responseTopic, correlationData },
  });
}

function cancel() {
  broker.publish(`${base}/cancel/${client}`, JSON.stringify({ id }), { qos: 1 });
}

let ended = false;

function end(code) {
  ended = true;
  process.exitCode = code;
  broker.end();
}

// Also after each reconnection: the same id and body again never makes a second answer.
broker.on('connect', () => {
  broker.subscribe(responseTopic, { qos: 1 }, (error, granted) => {
    if (error || granted.some(({ qos }) => qos > 2)) {
      console.error('the broker refuses the subscription');
      end(1);
    } else {
      ask();
    }
  });
});

broker.on('error', (error) => {
  // The broker may close the connection before we do.
  if (ended) return;
  console.error(error.message);
  end(1);
});

let attempt = 1;
let shown = '';

broker.on('message', (topic, payload, { properties }) => {
  if (!properties?.correlationData?.equals(correlationData)) return;
  const reply = JSON.parse(payload);
  switch (properties.userProperties.kind) {
    case 'chunk':
      if (reply.attempt !== attempt) {
        console.log('\n[the node has started again; so does the answer]');
        attempt = reply.attempt;
        shown = '';
      }
      shown += reply.delta;
      process.stdout.write(reply.delta);
      break;
    case 'final':
      // Chunks may get lost; the final reply has all of the text.
      console.log(reply.text.startsWith(shown) ? reply.text.slice(shown.length) : `\n${reply.text}`);
      console.error(`[${reply.finish_reason}, ${reply.usage.completion_tokens} tokens, by ${reply.model}]`);
      end(0);
      break;
    case 'error': {
      const { code, message, retry_after_ms: wait = 1000 } = reply.error;
      if (code === 'busy' || code === 'unavailable') {
        setTimeout(ask, wait);
      } else {
        console.error(`${code}: ${message}`);
        end(1);
      }
    }
  }
});

process.on('SIGINT', cancel);
