// A skill server and a robot, used from Node by the .proto file alone: nothing of this project's Python is needed.
//
//   npm ci --prefix examples/node                                     once: two packages and what they need, 14 MB
//   node examples/node/robot.mjs list --server 127.0.0.1:50051       what the robot can do
//   node examples/node/robot.mjs score --server 127.0.0.1:50051 --robot 127.0.0.1:50052    what may succeed from here
//   node examples/node/robot.mjs run "pick coke can" --robot 127.0.0.1:50052               Ctrl-C cancels
//   node examples/node/robot.mjs run "pick coke can" --robot 127.0.0.1:50052 --cancel-after 3    control periods
//   node examples/node/robot.mjs stop --robot 127.0.0.1:50052        refuses skills until `reset`, which is alike
//
// Exit code: 0, 1 for a skill that did not succeed, 2 for a call that failed.

import { randomUUID } from "node:crypto";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";

const PROTOS = fileURLToPath(new URL("../../protos", import.meta.url));
const CALL_TIMEOUT = 30_000; // [ms] for one answer
const EXECUTE_TIMEOUT = 600_000; // [ms] for one skill from start to end
const CHANNEL = {
  "grpc.max_receive_message_length": 64 * 2 ** 20, // [bytes] as in skills/wire/conventions.py; the default holds no long history
  "grpc.enable_http_proxy": 0,
};

const words = loadSync("skills/v1/skills.proto", {
  includeDirs: [PROTOS],
  keepCase: true, // goal_id, as the .proto says, not goalId
  longs: Number,
  enums: String,
  defaults: true,
  oneofs: true, // event.event names the kind that came
});
const { SkillService, RobotService } = grpc.loadPackageDefinition(words).skills.v1;

const connect = (Service, address, option, pings = {}) => {
  if (!address) throw new Error(`this needs ${option} HOST:PORT`);
  return new Service(address, grpc.credentials.createInsecure(), { ...CHANNEL, ...pings });
};

const ask = (client, method, request) =>
  new Promise((resolve, reject) => {
    const settings = { deadline: Date.now() + CALL_TIMEOUT };
    client[method](request, settings, (error, reply) => (error ? reject(error) : resolve(reply)));
  });

/** A Tensor's numbers: float32, little-endian, whatever machine this is. */
const numbers = ({ data }) => Array.from({ length: data.length / 4 }, (_, i) => data.readFloatLE(4 * i));
const short = (values) => values.map((value) => value.toFixed(2)).join(" ");

async function list(server) {
  for (const { name, text, learned } of (await ask(server, "ListSkills", {})).skills)
    console.log(`${name}  (${text}; ${learned ? "learnt" : "scripted"})`);
}

async function score(server, robot) {
  const { observation } = await ask(robot, "Observe", {});
  const { scores } = await ask(server, "ScoreSkills", { history: [observation] }); // no names: the whole library
  scores.sort((a, b) => b.affordance - a.affordance);
  for (const { skill, affordance, model_id } of scores) console.log(`${affordance.toFixed(2)}  ${skill}  (${model_id})`);
}

/** Keepalive pings, where the robot takes them, so that a link that died is noticed in a skill; others would hang up. */
async function pings(robot) {
  const { ping_interval_ms: least } = await ask(robot, "GetRobotInfo", {});
  return least ? { "grpc.keepalive_time_ms": Math.max(1000, least), "grpc.keepalive_timeout_ms": 1000 } : {};
}

/** Runs one skill to its end; the robot stops by itself when this process dies. */
async function run(robot, skill, cancelAfter) {
  const goal_id = randomUUID(); // a goal executes at most once, so each has an id of its own
  const cancel = () => ask(robot, "CancelSkill", { goal_id });
  process.once("SIGINT", () => cancel().catch(fail));
  const events = robot.ExecuteSkill({ goal_id, skill }, { deadline: Date.now() + EXECUTE_TIMEOUT });
  for await (const { event, accepted, feedback, result } of events) {
    if (event === "accepted") console.log(`accepted ${accepted.goal_id}`);
    if (event === "feedback") {
      console.log(`step ${feedback.step}  state ${short(numbers(feedback.state))}`);
      if (feedback.step === cancelAfter) await cancel();
    }
    if (event === "result") {
      console.log(`${result.status} after ${result.steps} steps, ${result.seconds.toFixed(1)} s  ${result.message}`);
      return result.status === "STATUS_SUCCEEDED" ? 0 : 1;
    }
  }
  throw new Error("the robot ended the skill without a result");
}

async function main() {
  const text = { type: "string" };
  const options = { server: text, robot: text, "cancel-after": text };
  const { values, positionals } = parseArgs({ options, allowPositionals: true });
  const [command, skill] = positionals;
  const cancelAfter = values["cancel-after"] === undefined ? null : Number(values["cancel-after"]);
  if (cancelAfter !== null && !(Number.isInteger(cancelAfter) && cancelAfter > 0))
    throw new Error(`--cancel-after ${values["cancel-after"]}: a whole number of control periods, from 1`);
  const server = () => connect(SkillService, values.server, "--server");
  const robot = (pings) => connect(RobotService, values.robot, "--robot", pings);
  if (command === "list") await list(server());
  else if (command === "score") await score(server(), robot());
  else if (command === "run" && skill) return run(robot(await pings(robot())), skill, cancelAfter);
  else if (command === "stop") await ask(robot(), "Stop", {});
  else if (command === "reset") await ask(robot(), "Reset", {});
  else throw new Error("say one of: list, score, run SKILL, stop, reset");
  return 0;
}

/** One line, and the exit code. */
function fail(error) {
  console.error(`error: ${grpc.status[error.code] ?? "usage"}: ${error.details ?? error.message}`);
  process.exit(2);
}

main().then((code) => process.exit(code), fail);
