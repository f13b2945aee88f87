// Asks for what is new, again and again; the broker answers when there is something. All that it tells is put in as text.
"use strict";
(() => {
  const table = document.getElementById("events");
  const body = table.tBodies[0];
  const how = document.getElementById("how");
  const nothing = document.getElementById("nothing");
  const ROWS_MAX = 200, PAUSE_MS = 700, AGAIN_MS = 2000, ASLEEP_MS = 40000;
  let cursor = table.dataset.cursor;

  const say = (text) => { if (how.textContent !== text) how.textContent = text; };
  const WATCHES = "Changes of entries as they happen, newest first.";

  // As the server's pages show texts: what cannot be seen is shown by its number.
  const HIDDEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Zl}\p{Zp}]/u;
  const put = (into, text) => {
    for (const character of text) {
      if (HIDDEN.test(character) && character !== "\u200d") {
        const odd = document.createElement("span");
        odd.className = "odd";
        odd.textContent = "U+" + character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
        into.append(odd);
      } else {
        into.append(character);
      }
    }
  };
  const cell = (row, kind, label) => {
    const made = document.createElement(kind);
    if (label) made.dataset.label = label;
    if (label === "When" || label === "By" || label === "Revision") made.className = "one";
    row.append(made);
    return made;
  };
  const age = (seconds) => {
    const past = Math.max(0, Math.floor(Date.now() / 1000 - seconds));
    for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]]) {
      if (past >= size) return Math.floor(past / size) + " " + unit + " ago";
    }
    return "now";
  };
  const add = (event) => {
    const row = document.createElement("tr");
    row.className = "fresh";
    const what = document.createElement("span");
    what.className = "state " + event.type;
    what.textContent = event.type;
    cell(row, "td", "What").append(what);
    const name = cell(row, "th");
    name.scope = "row";
    const link = document.createElement("a");
    link.className = "name";
    link.href = "/ui/entry?name=" + encodeURIComponent(event.name);
    const words = document.createElement("bdi");
    put(words, event.name);
    link.append(words);
    name.append(link);
    const time = document.createElement("time");
    const exact = new Date(event.when * 1000).toISOString();
    time.dateTime = exact;
    time.title = exact.replace("T", " ").replace(/\..*/, " UTC");
    time.textContent = age(event.when);
    cell(row, "td", "When").append(time);
    const by = cell(row, "td", "By");
    if (event.source) put(by, event.source);
    else { const none = document.createElement("span"); none.className = "none"; none.textContent = "not noted"; by.append(none); }
    cell(row, "td", "Revision").textContent = event.revision;
    body.prepend(row);
  };
  const tell = (text) => {
    const row = document.createElement("tr");
    row.className = "gap";
    const made = cell(row, "td");
    made.colSpan = 5;
    made.textContent = text;
    body.prepend(row);
  };
  const refresh = () => {
    for (const time of body.querySelectorAll("time")) time.textContent = age(Date.parse(time.dateTime) / 1000);
  };
  const show = (news) => {
    if (news.missed) tell("Some changes before this were missed: load the page again to see the newest state.");
    if (news.left_out) tell(news.left_out + " changes are left out here: there were too many.");
    for (const event of news.events) add(event);
    while (body.rows.length > ROWS_MAX) body.lastElementChild.remove();
    if (body.rows.length) { table.hidden = false; nothing.hidden = true; }
    cursor = news.cursor;
  };
  const pause = (ms) => new Promise((done) => setTimeout(done, ms));

  const follow = async () => {
    for (;;) {
      try {
        const answer = await fetch("/ui/live/events?after=" + encodeURIComponent(cursor), {
          credentials: "same-origin", cache: "no-store", signal: AbortSignal.timeout(ASLEEP_MS),
        });
        if (answer.status === 401) { location.assign("/ui/live"); return; }
        if (!answer.ok) throw new Error(answer.status);
        show(await answer.json());
        say(WATCHES);
        await pause(PAUSE_MS);
      } catch (error) {
        say("The broker does not answer; it is tried again, and what happens meanwhile is caught up.");
        await pause(AGAIN_MS);
      }
    }
  };
  say(WATCHES);
  refresh();
  setInterval(refresh, 5000);
  follow();
})();
