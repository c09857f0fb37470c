// One request on its way: its events go to the predictions, its times to whoever shows them.

import { server } from "./api.js";

export class Run {
  #request;
  #predictions;
  #onTiming;
  #onFirstToken;
  #undo;
  #stop = new AbortController();
  #begin = performance.now();
  #first;

  constructor(request, predictions, { onTiming, onFirstToken }) {
    this.#request = request;
    this.#predictions = predictions;
    this.#onTiming = onTiming;
    this.#onFirstToken = onFirstToken;
    this.#undo = predictions.map((prediction) => prediction.start());
    onTiming({});
  }

  /** Whether a token has come. */
  get hasBegun() {
    return this.#first !== undefined;
  }

  /** Gives the predictions what they had before. */
  takeBack() {
    for (const undo of this.#undo) undo();
  }

  /** The server notices that we have left, and stops too. */
  stop() {
    this.#stop.abort();
    this.#breakOff("stopped"); // now: the next run may have one of these predictions
  }

  /** Until the last event. Throws `Problem`; a stop is no problem. */
  async finished() {
    const { signal } = this.#stop;
    try {
      for await (const events of server.generate(this.#request, signal)) {
        if (signal.aborted) return;
        for (const event of events) this.#on(event);
      }
    } catch (error) {
      if (signal.aborted) return;
      this.#breakOff("failed");
      throw error;
    }
  }

  #on(event) {
    if (event.token) {
      if (!this.hasBegun) this.#begun();
      this.#predictions[event.index].append(event.token.text);
    } else if (event.finish_reason) {
      this.#predictions[event.index].finish(event);
    } else if (event.timing) {
      this.#onTiming(this.#timing(event));
    }
  }

  #begun() {
    this.#first = performance.now() - this.#begin;
    this.#onTiming({ first: this.#first });
    this.#onFirstToken();
  }

  #timing({ usage, timing }) {
    // The first token of each sequence comes out of the prefill.
    const decoded = usage.completion_tokens - this.#predictions.length;
    return {
      queue: timing.queue_ms,
      load: timing.load_ms,
      first: this.#first,
      rate: timing.decode_ms > 0 ? decoded / (timing.decode_ms / 1000) : undefined,
    };
  }

  #breakOff(word) {
    for (const prediction of this.#predictions) prediction.breakOff(word);
  }
}
