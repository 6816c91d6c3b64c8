// Prints what LiteRT.js says in Node to the jobs of a folder. The package is made for pages and workers: it loads its
// WebAssembly through a classic script, as a worker does, which then looks for Node's names of CommonJS.
import fs from 'node:fs';
import {createRequire} from 'node:module';
import path from 'node:path';
import vm from 'node:vm';

globalThis.self = globalThis;
globalThis.require = createRequire(import.meta.url);
globalThis.importScripts = script => {
  globalThis.__dirname = path.dirname(script);
  globalThis.__filename = script;
  vm.runInThisContext(fs.readFileSync(script, 'utf8'), {filename: script});
};
const {answers} = await import('./litert.mjs');

const [folder] = process.argv.slice(2);
const jobs = JSON.parse(fs.readFileSync(path.join(folder, 'jobs.json'), 'utf8'));
const read = file => new Uint8Array(fs.readFileSync(path.join(folder, file)));
const wasm = new URL('node_modules/@litertjs/core/wasm/', import.meta.url).pathname;
console.log(JSON.stringify(await answers(wasm, {}, jobs, read)));
