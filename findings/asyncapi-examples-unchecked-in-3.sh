#!/usr/bin/env bash
# Software: @asyncapi/parser 3.6.3, the AsyncAPI project's own parser and validator.
#
# Expected: a message's examples are compared with its payload and headers schemas in each version of
# AsyncAPI. The specification asks for it in version 3 as in version 2.
#
# Instead: the rule exists for 2.x only. The same message whose examples contradict its schemas is an
# error in a 2.6.0 document, and passes without an error or a warning about them in 3.0.0 and 3.1.0.
# Other mistakes of that size (a wrong type in an AMQP binding) stay errors in version 3, so that the
# validation looks alive.
#
# Why it matters: examples are what the consumers of an event copy, and mocks and contract tests send
# them. A document that was moved from 2.6 to 3 keeps its green check and loses this one.
#
# Output:
#   2.6.0 wrong examples      refused   2 errors (asyncapi2-message-examples)
#   3.0.0 wrong examples      accepted  0 errors
#   3.1.0 wrong examples      accepted  0 errors
#   3.1.0 wrong AMQP binding  refused   4 errors (asyncapi-document-resolved)
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
timeout 300 npm install --prefix "$work" --no-update-notifier --no-audit --no-fund --loglevel=error \
  @asyncapi/parser@3.6.3 >/dev/null

cat >look.js <<'JS'
const { Parser } = require("@asyncapi/parser");

const message = {
  payload: { type: "object", required: ["id"], properties: { id: { type: "integer" } } },
  headers: { type: "object", properties: { attempt: { type: "integer" } } },
  examples: [{ name: "first", payload: { id: "not a number" }, headers: { attempt: "one" } }],
};
const info = { title: "orders", version: "1.0.0" };

const version2 = { asyncapi: "2.6.0", info, channels: { orders: { subscribe: { message } } } };
const version3 = (asyncapi, placed, bindings = {}) => ({
  asyncapi,
  info,
  channels: { orders: { address: "orders", messages: { placed }, bindings } },
  operations: { send: { action: "send", channel: { $ref: "#/channels/orders" } } },
});
const { examples, ...withoutExamples } = message;
const wrongBinding = { amqp: { is: "queue", queue: { name: "work", durable: "yes" } } };

async function look(label, document) {
  const result = await new Parser().parse(document);
  const errors = result.diagnostics.filter((one) => one.severity === 0);
  const about = result.diagnostics.filter((one) => one.path.includes("examples"));
  const rules = [...new Set(errors.map((one) => one.code))].join(", ");
  const verdict = result.document ? "accepted" : "refused";
  console.log(`${label.padEnd(25)} ${verdict.padEnd(9)} ${errors.length} errors${rules && ` (${rules})`}`);
  return `${verdict}:${about.length}`;
}

(async () => {
  const seen = [
    await look("2.6.0 wrong examples", version2),
    await look("3.0.0 wrong examples", version3("3.0.0", message)),
    await look("3.1.0 wrong examples", version3("3.1.0", message)),
    await look("3.1.0 wrong AMQP binding", version3("3.1.0", withoutExamples, wrongBinding)),
  ];
  if (seen.join() !== "refused:2,accepted:0,accepted:0,refused:0") {
    console.error(`changed: examples are checked otherwise: ${seen.join()}`);
    process.exit(1);
  }
})();
JS
timeout 120 node look.js
