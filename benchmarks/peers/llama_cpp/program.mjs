// The far side of benchmarks/peers/llama_cpp: a request a line on stdin, an answer a line on stdout.
//
//     node program.mjs PATH/node-llama-cpp/dist/index.js THREADS
//
// Times are in seconds, all of this process's clock.

import {once} from "node:events";
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

const now = () => performance.now() / 1000;

let model = null;
let context = null;
let sequences = [];

async function makeContext(count, size) {
    if (context?.totalSequences === count && context.contextSize === size)
        return;
    await context?.dispose();
    context = await model.createContext({sequences: count, contextSize: size, threads});
    sequences = Array.from({length: count}, () => context.getSequence());
}

async function continueOne(sequence, ids, {tokens, topK}, seed) {
    const made = [];
    const stamps = [];
    const options = {temperature: 1, topK, topP: 1, minP: 0, seed, yieldEogToken: true};
    for await (const token of sequence.evaluate(ids, options)) {
        made.push(token);
        stamps.push(now());
        if (made.length === tokens)
            break;
    }
    return {made, stamps};
}

const methods = {
    ready: () => null,

    async load({path}) {
        const begin = now();
        model = await llama.loadModel({modelPath: path});
        const loaded = now();
        await makeContext(1, model.trainContextSize);
        return {model: loaded - begin, context: now() - loaded};
    },

    async unload() {
        await context?.dispose();
        await model?.dispose();
        context = model = null;
        return null;
    },

    async generate(request) {
        const {prompts, tokens, seeds} = request;
        const alone = prompts.length === 1 && context?.totalSequences === 1;
        if (!alone)
            await makeContext(prompts.length, Math.max(...prompts.map(ids => ids.length)) + tokens);
        for (const sequence of sequences)
            await sequence.clearHistory();
        const begin = now();
        const texts = await Promise.all(prompts.map(
            (ids, n) => continueOne(sequences[n], ids, request, seeds?.[n])
        ));
        const end = now();
        return {begin, end, stamps: texts.map(text => text.stamps), ids: texts.map(text => text.made)};
    }
};

for await (const line of createInterface({input: process.stdin})) {
    const request = JSON.parse(line);
    let answer;
    try {
        answer = {result: await methods[request.method](request)};
    } catch (error) {
        answer = {error: String(error?.stack ?? error)};
    }
    if (!process.stdout.write(JSON.stringify(answer) + "\n"))
        await once(process.stdout, "drain");
}
process.exit(0);
