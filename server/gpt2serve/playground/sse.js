// Server-sent events out of a stream of bytes, which may be cut anywhere: inside a line, between
// CR and LF, inside a character.

export class EventParser {
  #decoder = new TextDecoder();
  #rest = "";
  #data = [];

  /** The data of each event that `bytes` completes. */
  push(bytes) {
    this.#rest += this.#decoder.decode(bytes, { stream: true });
    const events = [];
    for (const line of this.#lines()) {
      if (line.startsWith("data:")) {
        this.#data.push(line.slice(line[5] === " " ? 6 : 5));
      } else if (line === "" && this.#data.length > 0) {
        events.push(this.#data.join("\n"));
        this.#data = [];
      } // all else is a comment, or a field that nobody here asks for
    }
    return events;
  }

  #lines() {
    // A CR at the very end may be the first half of a CRLF: it waits for what comes next.
    const held = this.#rest.endsWith("\r") ? "\r" : "";
    const lines = this.#rest.slice(0, this.#rest.length - held.length).split(/\r\n|\r|\n/);
    this.#rest = lines.pop() + held;
    return lines;
  }
}

/** The data of the events in `stream`, in arrays: together what came together. */
export async function* readEvents(stream) {
  const parser = new EventParser();
  const reader = stream.getReader();
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      yield parser.push(value);
    }
  } finally {
    reader.cancel().catch(() => {}); // whoever stops reading wants no more of it
  }
}
