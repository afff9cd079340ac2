// The administrator's page: annotators and their links.

import { ask } from "./server.js";

const $ = (id) => document.getElementById(id);

async function link(path, body) {
  $("problem").hidden = true;
  try {
    const made = await ask(path, body);
    $("link-name").textContent = made.name;
    $("link-text").value = made.link;
    $("link").showModal();
    $("link-text").select();
  } catch (error) {
    problem(error.message);
  }
}

function problem(text) {
  $("problem").textContent = text;
  $("problem").hidden = false;
}

$("add").addEventListener("submit", (event) => {
  event.preventDefault();
  const form = new FormData($("add"));
  link("/api/admin/annotator", { name: form.get("name"), role: form.get("role") });
});

document.querySelectorAll("[data-link]").forEach((button) => {
  button.addEventListener("click", () => {
    const name = button.dataset.link;
    if (confirm(`Make a new link for ${name}? The one before ends.`)) link("/api/admin/link", { name });
  });
});

document.querySelectorAll("[data-revoke]").forEach((button) => {
  button.addEventListener("click", async () => {
    const name = button.dataset.revoke;
    if (!confirm(`Withdraw the link of ${name}? The votes stay.`)) return;
    try {
      await ask("/api/admin/revoke", { name });
      $("live").textContent = `The link of ${name} is withdrawn.`;
      button.disabled = true;
    } catch (error) {
      problem(error.message);
    }
  });
});

$("copy").addEventListener("click", async () => {
  $("link-text").select();
  if (navigator.clipboard) await navigator.clipboard.writeText($("link-text").value); // not there without https
  else document.execCommand("copy");
  $("copy").textContent = "Copied";
});

// The page is drawn once; the list of annotators is new after a link was made.
$("link").addEventListener("close", () => {
  $("link-text").value = "";
  location.reload();
});
