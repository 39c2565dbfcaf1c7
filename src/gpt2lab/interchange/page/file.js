// Begins the exported file, which has the model, the engine and the weights in it.

import { $ } from "./dom.js";
import { opened } from "./views.js";
import { WasmEngine } from "./wasm.js";

const content = (id) => Uint8Array.from(atob($(id).textContent), (letter) => letter.charCodeAt(0));

WasmEngine.unpacked(JSON.parse($("model").textContent), content("engine"), content("weights")).then(
  (engine) => opened([engine]),
  (error) => ($("status").textContent = `This browser cannot run the model: ${error.message}`),
);
