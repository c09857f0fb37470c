// The same request for a terminal and for programs. The key is named, never shown.

export const LANGUAGES = { curl, python, javascript };

const JSON_TYPE = "application/json";

function curl(url, request, withKey) {
  const lines = [`curl ${shellQuoted(url)}`, `-H 'Content-Type: ${JSON_TYPE}'`];
  if (withKey) lines.push('-H "Authorization: Bearer $API_KEY"');
  lines.push(`-d ${shellQuoted(JSON.stringify(request))}`);
  return lines.join(" \\\n  ");
}

function shellQuoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

function python(url, request, withKey) {
  const fields = Object.entries(request).map(
    ([name, value]) => `    ${JSON.stringify(name)}: ${pythonValue(value)},\n`,
  );
  return [
    "import json\n",
    withKey ? "import os\n" : "",
    "from urllib.request import Request, urlopen\n\n",
    `url = ${JSON.stringify(url)}\n`,
    `request = {\n${fields.join("")}}\n`,
    `headers = {"Content-Type": "${JSON_TYPE}"}\n`,
    withKey ? 'headers["Authorization"] = f"Bearer {os.environ[\'API_KEY\']}"\n' : "",
    "answer = urlopen(Request(url, json.dumps(request).encode(), headers), timeout=60)\n",
    'for generation in json.load(answer)["generations"]:\n',
    '    print(generation["text"])',
  ].join("");
}

/** JSON's strings, numbers and lists are Python's; its true and false are not. */
function pythonValue(value) {
  if (typeof value === "boolean") return value ? "True" : "False";
  return JSON.stringify(value);
}

function javascript(url, request, withKey) {
  const key = withKey ? ", Authorization: `Bearer ${apiKey}`" : "";
  return [
    withKey ? 'const apiKey = "YOUR_API_KEY";\n' : "",
    `const answer = await fetch(${JSON.stringify(url)}, {\n`,
    '  method: "POST",\n',
    `  headers: { "Content-Type": "${JSON_TYPE}"${key} },\n`,
    `  body: JSON.stringify(${JSON.stringify(request, null, 2).replaceAll("\n", "\n  ")}),\n`,
    "});\n",
    "if (!answer.ok) throw new Error(await answer.text());\n",
    "const { generations } = await answer.json();\n",
    "for (const { text } of generations) console.log(text);",
  ].join("");
}
