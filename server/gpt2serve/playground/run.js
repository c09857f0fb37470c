// One request on its way: its events go to the predictions, its times to whoever shows them.

import { server } from "./api.js";

export class Run {
  #request;
  #predictions;
  #onTiming;
  #stop = new AbortController();
  #begin = performance.now();
  #first;

  constructor(request, predictions, onTiming) {
    this.#request = request;
    this.#predictions = predictions;
    this.#onTiming = onTiming;
    for (const prediction of predictions) prediction.start();
    onTiming({});
  }

  /** Whether a token has come. */
  get hasBegun() {
    return this.#first !== undefined;
  }

  /** The server notices that we have left, and stops too. */
  stop() {
    this.#stop.abort();
  }

  /** Until the last event. Throws `Problem`; a stop is no problem. */
  async finished() {
    const { signal } = this.#stop;
    try {
      for await (const events of server.generate(this.#request, signal)) {
        for (const event of events) this.#on(event);
      }
    } catch (error) {
      this.#breakOff(signal.aborted ? "stopped" : "failed");
      if (!signal.aborted) throw error;
    }
  }

  #on(event) {
    if (event.token) {
      this.#first ??= performance.now() - this.#begin;
      this.#predictions[event.index].append(event.token.text);
    } else if (event.finish_reason) {
      this.#predictions[event.index].finish(event);
    } else if (event.timing) {
      this.#onTiming(this.#timing(event));
    }
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
