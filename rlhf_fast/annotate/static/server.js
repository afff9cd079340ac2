// Asking the server: what is not answered is asked again, with the same request, until it is.

const csrf = document.querySelector("meta[name=csrf]").content;
const WAITS = [300, 600, 1200, 2500, 5000];

export class Refusal extends Error {}

export function requestId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16)); // randomUUID is missing where a page is not served by https
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// The JSON of an answer. A server that is away or busy is asked again; `waiting(text)` is told, and told "" at the end.
export async function ask(path, body, waiting = () => {}) {
  for (let tries = 0; ; tries += 1) {
    const response = await once(path, body);
    if (response && response.ok) {
      waiting("");
      return response.json();
    }
    if (response && response.status !== 429 && response.status < 500) {
      waiting("");
      throw new Refusal(await reason(response));
    }
    if (response && response.status === 500 && tries >= 2) {
      waiting("");
      throw new Refusal(await reason(response));
    }
    waiting(response ? "The server is busy." : "The server does not answer.");
    const asked = response && Number(response.headers.get("retry-after")) * 1000;
    await new Promise((resolve) => setTimeout(resolve, asked || WAITS[Math.min(tries, WAITS.length - 1)]));
  }
}

async function once(path, body) {
  const options = body === undefined ? {} : {
    method: "POST",
    headers: { "content-type": "application/json", "x-csrf-token": csrf },
    body: JSON.stringify(body),
  };
  try {
    return await fetch(path, { credentials: "same-origin", ...options });
  } catch {
    return null;
  }
}

async function reason(response) {
  try {
    return (await response.json()).error;
  } catch {
    return `The server answered ${response.status}.`;
  }
}

const policy = window.trustedTypes
  ? window.trustedTypes.createPolicy("rlhf-fast", { createHTML: (html) => html })
  : { createHTML: (html) => html };

// The one way of HTML into the page: what the server drew (rendering.py), which has no script in it.
export function put(element, html) {
  element.innerHTML = policy.createHTML(html);
}

export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}
