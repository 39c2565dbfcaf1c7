// Begins the server's page.

import { $ } from "./dom.js";
import { engines, found } from "./http.js";
import { trainView } from "./train.js";
import { opened } from "./views.js";

engines().then(
  (all) => opened(all, { train: trainView(found) }),
  (error) => ($("status").textContent = `The server's models cannot be reached: ${error.message}`),
);
