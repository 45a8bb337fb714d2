// Open a laid-out folder with Transformers.js in Node, offline, tokenizer included. One job as JSON in argv[2].
import fs from "node:fs";
import path from "node:path";
import * as hf from "@huggingface/transformers";

const job = JSON.parse(process.argv[2]);
hf.env.allowRemoteModels = false;
hf.env.localModelPath = path.dirname(job.folder) + "/";
const name = path.basename(job.folder);
const options = job.dtype ? { dtype: job.dtype } : {};
const tokenizer = await hf.AutoTokenizer.from_pretrained(name);
const model = await hf[job.class].from_pretrained(name, options);
const found = {};
if (job.new_tokens) {
  // One prompt after the other: its tokenizer pads on the side that the folder says.
  found.tokens = [];
  for (const text of job.texts) {
    const inputs = await tokenizer(text);
    const tokens = await model.generate({ ...inputs, max_new_tokens: job.new_tokens, do_sample: false });
    found.tokens.push(tokens.tolist()[0].slice(inputs.input_ids.dims[1]).map(Number));
  }
} else {
  const outputs = await model(await tokenizer(job.texts, { padding: true }));
  for (const output of job.outputs) found[output] = outputs[output].tolist();
}
fs.writeFileSync(job.out, JSON.stringify(found));
console.log(JSON.stringify({ version: `Transformers.js ${hf.env.version}` }));
