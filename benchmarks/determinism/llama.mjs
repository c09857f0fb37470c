// llama.cpp as a server uses it: the sequences of one context are decoded together, each takes the
// next request when it has ended one, and each request has its own seed.
//
//     node llama.mjs PATH/node-llama-cpp/dist/index.js THREADS
//
// A request a line on stdin, an answer a line on stdout, as benchmarks/peers/llama_cpp wants it.

import {createInterface} from "node:readline";
import {pathToFileURL} from "node:url";

const {getLlama} = await import(pathToFileURL(process.argv[2]));
const threads = Number(process.argv[3]);
const llama = await getLlama({
    gpu: false,
    build: "never",
    skipDownload: true,
    maxThreads: threads,
    logLevel: "error",
    logger: (level, message) => console.error(message)
});

let model = null;

async function answer(sequence, {ids, seed}, tokens, sampling) {
    const made = [];
    await sequence.clearHistory();
    for await (const token of sequence.evaluate(ids, {...sampling, seed})) {
        made.push(token);
        if (made.length === tokens)
            break;
    }
    return made;  // `evaluate` itself ends before the end-of-text token
}

const methods = {
    ready: () => null,

    async load({path}) {
        model = await llama.loadModel({modelPath: path});
        return {};
    },

    async texts({requests, batch, tokens, sampling}) {
        const contextSize = tokens + Math.max(...requests.map(({ids}) => ids.length));
        const context = await model.createContext({sequences: batch, contextSize, threads});
        const answers = [];
        let next = 0;
        async function work(sequence) {
            while (next < requests.length) {
                const number = next++;
                answers[number] = await answer(sequence, requests[number], tokens, sampling);
            }
        }
        await Promise.all(Array.from({length: batch}, () => work(context.getSequence())));
        await context.dispose();
        return answers;
    }
};

for await (const line of createInterface({input: process.stdin})) {
    const request = JSON.parse(line);
    let reply;
    try {
        reply = {result: await methods[request.method](request)};
    } catch (error) {
        reply = {error: String(error?.stack ?? error)};
    }
    process.stdout.write(JSON.stringify(reply) + "\n");
}
process.exit(0);
