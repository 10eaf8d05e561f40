// Keys are taken on the window, on their way down: JupyterLab would insert a cell for "a" and delete one for "d d".
// Decisions are messages, not states: a state that changes twice quickly is sent once. A message waits for the answer
// to the one before: JupyterLab and the kernel handle messages in several threads, which may change their order.
const MOVES = { ArrowLeft: "k", ArrowUp: "k", ArrowRight: "j", ArrowDown: "j", j: "j", k: "k" };

function element(tag, parent, properties) {
  return parent.appendChild(Object.assign(document.createElement(tag), properties));
}

function render({ model, el }) {
  el.classList.add("f1-keys");
  const form = element("div", el, { className: "f1-editor" });
  const label = element("label", form, { textContent: "Edit the chain" });
  const text = element("textarea", label, { spellcheck: false, rows: 13 });
  const buttons = element("div", form, {});
  const save = element("button", buttons, { type: "button", textContent: "Save", className: "f1-save" });
  const cancel = element("button", buttons, { type: "button", textContent: "Cancel" });
  element("span", buttons, { innerHTML: "<kbd>Ctrl</kbd> <kbd>Enter</kbd> saves, <kbd>Esc</kbd> cancels" });
  const note = element("div", el, { className: "f1-note" });
  note.setAttribute("role", "status");

  const panel = () => el.closest(".f1-desk");
  const queue = [];  // its first message is on the way
  const send = (key) => {
    queue.push({ key, number: Math.random(), text: text.value });
    if (queue.length === 1) model.send(queue[0]);
  };
  const onAnswer = () => {
    if (model.get("answered") !== queue[0]?.number) return;
    queue.shift();
    if (queue.length) model.send(queue[0]);
  };
  // a flagged edit is kept when it is saved again: that must not happen by a double click
  const saveOnce = () => { if (!queue.length) send("save"); };
  const onKey = (event) => {
    if (!panel()?.contains(event.target)) return;
    const take = () => { event.preventDefault(); event.stopPropagation(); };
    if (event.target === text) {
      const control = event.ctrlKey || event.metaKey;
      if (control && event.key === "Enter") { take(); if (!event.repeat) saveOnce(); }
      else if (event.key === "Escape" && !event.isComposing) { take(); send("cancel"); }
      else if (!control) event.stopPropagation();  // JupyterLab would take Enter
      return;
    }
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.matches("select, input, textarea")) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const command = MOVES[key] ?? ("aeru".includes(key) ? key : null);
    if (command || (key.length === 1 && key !== " ")) take();
    const held = event.repeat && (!MOVES[key] || queue.length > 0);  // a key that is held down decides once
    if (command && !held) send(command);
  };
  const refocus = () => {
    panel().tabIndex = 0;
    (model.get("draft") === null ? panel() : text).focus({ preventScroll: true });
  };
  // A click makes the keys work; pressing a button by Enter or Space (detail 0) leaves the focus on it.
  const onClick = (event) => {
    if (!panel()?.contains(event.target) || event.target.matches("select, option, textarea, label")) return;
    if (event.detail > 0) refocus();
  };
  const showDraft = () => {
    form.hidden = model.get("draft") === null;
    text.value = model.get("draft") ?? "";
  };
  const onDraft = () => {
    const here = panel()?.contains(document.activeElement) || document.activeElement === document.body;
    showDraft();
    if (here) refocus();
  };
  const showNote = () => {
    note.textContent = model.get("note");
    note.classList.toggle("f1-problem", model.get("problem"));
  };

  save.addEventListener("click", (event) => { if (event.detail < 2) saveOnce(); });
  cancel.addEventListener("click", () => send("cancel"));
  model.on("change:draft", onDraft);
  model.on("change:note", showNote);
  model.on("change:answered", onAnswer);
  window.addEventListener("keydown", onKey, true);
  window.addEventListener("click", onClick);
  showNote();
  showDraft();
  return () => {
    model.off("change:draft", onDraft);
    model.off("change:note", showNote);
    model.off("change:answered", onAnswer);
    window.removeEventListener("keydown", onKey, true);
    window.removeEventListener("click", onClick);
  };
}
export default { render };
