// Runs files with LiteRT.js: the same code for a page and for Node.
import {loadLiteRt, Tensor} from '@litertjs/core';

const ARRAYS = {float32: Float32Array, int32: Int32Array, uint8: Uint8Array};

// What each job's file answers to its inputs, or why it does not.
export async function answers(wasm, {webgpu, ...options}, jobs, read) {
  const accelerator = webgpu ? 'webgpu' : 'wasm';
  const litert = await loadLiteRt(wasm, options);
  const said = {};
  for (const job of jobs) {
    try {
      said[job.name] = await answer(litert, await read(job.file), job, accelerator);
    } catch (error) {
      said[job.name] = {error: String(error?.message ?? error)};
    }
  }
  return said;
}

async function answer(litert, content, {calls}, accelerator) {
  const model = await litert.loadAndCompile(content, {accelerator});
  try {
    const said = {accelerated: model.isFullyAccelerated, signatures: Object.keys(model.signatures), outputs: []};
    for (const {signature, inputs} of calls) {
      said.outputs.push(await called(model.signatures[signature], inputs));
    }
    return said;
  } finally {
    model.delete();
  }
}

async function called(runner, inputs) {
  const given = {};
  for (const {name, dtype} of runner.getInputDetails()) {
    given[name] = new Tensor(ARRAYS[dtype].from(inputs[name].values), inputs[name].shape);
  }
  const outputs = {};
  for (const [name, tensor] of Object.entries(await runner.run(given))) {
    outputs[name] = {shape: Array.from(tensor.type.layout.dimensions), values: Array.from(await tensor.data())};
    tensor.delete();
  }
  Object.values(given).forEach(tensor => tensor.delete());
  return outputs;
}
