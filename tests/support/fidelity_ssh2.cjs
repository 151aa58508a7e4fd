// npm's ssh2, driven by tests/support/fidelity_clients.py: one job as JSON on stdin, its result as JSON on stdout.
"use strict";
const { Client } = require("ssh2");

const bytes = (text) => Buffer.from(text, "base64");
const coded = (parts) => Buffer.concat(parts).toString("base64");

function connect(job) {
  return new Promise((resolve, reject) => {
    const client = new Client();
    client.once("ready", () => resolve(client));
    client.once("error", reject);
    client.connect({
      host: "127.0.0.1",
      port: job.port,
      username: job.user,
      privateKey: job.key,
      hostVerifier: (key) => key.toString("base64") === job.host,
      readyTimeout: 60000,
      // It has forwards to paths for servers that call themselves OpenSSH only, unless told otherwise.
      strictVendor: false,
    });
  });
}

function open(client, command) {
  return new Promise((resolve, reject) => {
    const options = { env: command.env };
    if (command.pty) options.pty = command.pty;
    client.exec(command.text, options, (error, channel) => {
      if (error) return reject(error);
      // Here, not after the promise: a short command's end may stand in the same packet.
      channel.told = { status: null, signal: null };
      channel.on("exit", (code, name) => {
        channel.told = { status: code, signal: name === undefined ? null : name };
      });
      resolve(channel);
    });
  });
}

function finish(channel, command) {
  return new Promise((resolve) => {
    const stdout = [], stderr = [];
    channel.on("data", (part) => stdout.push(part));
    channel.stderr.on("data", (part) => stderr.push(part));
    channel.on("close", () => resolve({ ...channel.told, stdout: coded(stdout), stderr: coded(stderr) }));
    channel.end(bytes(command.stdin));
  });
}

const jobs = {
  async execute(client, job) {
    const channels = [];
    for (const command of job.commands) channels.push(await open(client, command));
    return Promise.all(channels.map((channel, index) => finish(channel, job.commands[index])));
  },

  // Waits for the first line, then resizes or signals.
  async poke(client, job) {
    const channel = await open(client, { text: job.text, env: {}, pty: job.pty });
    const stdout = [];
    const closed = new Promise((resolve) => channel.on("close", resolve));
    await new Promise((resolve) => channel.on("data", (part) => {
      stdout.push(part);
      if (Buffer.concat(stdout).includes("ready")) resolve();
    }));
    if (job.resize) channel.setWindow(job.resize[1], job.resize[0], 0, 0);
    if (job.signal) channel.signal(job.signal);
    await closed;
    return { ...channel.told, stdout: coded(stdout) };
  },

  call_port(client, job) {
    return new Promise((resolve) => {
      client.forwardOut("127.0.0.1", 1, "127.0.0.1", job.target, (error, stream) => {
        if (error) return resolve({ refused: `${error.reason} ${error.message}` });
        const parts = [];
        stream.on("data", (part) => parts.push(part));
        stream.on("close", () => resolve({ answer: coded(parts) }));
        stream.end(bytes(job.sent));
      });
    });
  },

  call_path(client, job) {
    return new Promise((resolve) => {
      client.openssh_forwardOutStreamLocal(job.path, (error, stream) => {
        if (error) return resolve({ refused: `${error.reason} ${error.message}` });
        const parts = [];
        stream.on("data", (part) => parts.push(part));
        stream.on("close", () => resolve({ answer: coded(parts) }));
        stream.end(bytes(job.sent));
      });
    });
  },

  subsystem(client, job) {
    return new Promise((resolve) => {
      client.subsys(job.name, (error) => resolve(error ? String(error.message) : "open"));
    });
  },

  async rekey(client, job) {
    const channel = await open(client, { text: job.text, env: {} });
    const done = finish(channel, { stdin: "" });
    for (let count = 0; count < job.times; count++) {
      await new Promise((resolve) => client.rekey(resolve));
    }
    return done;
  },

  async sftp(client, job) {
    const sftp = await new Promise((resolve, reject) => client.sftp((e, s) => (e ? reject(e) : resolve(s))));
    const call = (name, ...rest) => new Promise((resolve, reject) =>
      sftp[name](...rest, (error, value) => (error ? reject(error) : resolve(value))));
    const seen = [];
    const at = (name) => `${job.folder}/${name}`;
    await call("writeFile", at("a b"), bytes(job.content), { mode: 0o640 });
    await call("mkdir", at("sub"));
    await call("rename", at("a b"), at("sub/c"));
    seen.push((await call("readdir", at("sub"))).map((entry) => entry.filename).sort());
    const found = await call("stat", at("sub/c"));
    seen.push(found.size, found.mode);
    seen.push((await call("readFile", at("sub/c"))).toString("base64"));
    for (const wrong of [() => call("stat", at("absent")), () => call("rmdir", at("sub"))]) {
      try { await wrong(); } catch (error) { seen.push(`${error.code} ${error.message}`); }
    }
    await call("unlink", at("sub/c"));
    await call("rmdir", at("sub"));
    return seen;
  },
};

async function main() {
  const parts = [];
  for await (const part of process.stdin) parts.push(part);
  const job = JSON.parse(Buffer.concat(parts));
  const client = await connect(job);
  const told = await jobs[job.job](client, job);
  process.stdout.write(JSON.stringify(told), () => process.exit(0));
}

main().catch((error) => { process.stderr.write(`${error.stack}\n`); process.exit(1); });
