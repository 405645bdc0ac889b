"use strict";
// Asks the gateway once a second. Everything from outside goes in as text, never as markup.
const KEEP = 120, ROWS = 200;
const rates = new Map();
let after = 0;

const element = (tag, className, text) => {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
};
const number = (value) => Math.round(value).toLocaleString("en");
const clock = (seconds) => {
  const s = Math.floor(seconds);
  return `${Math.floor(s / 3600)}:${String(Math.floor(s / 60) % 60).padStart(2, "0")}:${String(s % 60).padStart(2, "0")}`;
};
const where = (record) => record.can ? `${record.can.channel} ${record.can.id}`
  : record.src_ip ? `${record.src_ip} \u2192 ${record.dest_ip}:${record.dest_port}` : "";

function sparkline(values) {
  const space = "http://www.w3.org/2000/svg";
  const drawing = document.createElementNS(space, "svg");
  drawing.setAttribute("viewBox", `0 0 ${KEEP} 20`);
  drawing.setAttribute("preserveAspectRatio", "none");
  const top = Math.max(1, ...values);
  const line = document.createElementNS(space, "polyline");
  line.setAttribute("points", values.map((v, i) => `${KEEP - values.length + i},${19 - 18 * v / top}`).join(" "));
  drawing.append(line);
  return drawing;
}

function card(source) {
  const history = rates.get(source.name) || [];
  history.push(source.per_second);
  if (history.length > KEEP) history.shift();
  rates.set(source.name, history);
  const box = element("article", "card");
  const top = element("div", "top");
  top.append(element("strong", "", source.name), element("span", `pill ${source.state}`, source.state));
  const rate = element("div", "rate", number(source.per_second) + " ");
  rate.append(element("small", "", `${source.unit}/s`));
  const list = element("dl");
  for (const [name, value] of [[source.unit, number(source.items)], ["alerts", number(source.alerts)], ["anomalies", number(source.anomalies)],
    ["memory", source.rss_bytes ? `${number(source.rss_bytes / 1048576)} MiB` : "\u2013"], ["dropped", number(source.dropped)],
    ["malformed", number(source.malformed)], ["restarts", number(source.restarts)]]) {
    const pair = element("div");
    pair.append(element("dt", "", name), element("dd", "", value));
    list.append(pair);
  }
  const target = element("div", "target", `${source.kind} ${source.target}`);
  target.title = source.target;
  box.append(top, target, rate, sparkline(history), list);
  if (source.error) box.append(element("p", "error", source.error));
  return box;
}

function row(item) {
  const record = item.record;
  const line = element("tr");
  line.append(element("td", "", record.timestamp.slice(11, 23)), element("td", "", record.gateway.source),
    element("td", `s${record.alert.severity}`, ["", "high", "medium", "low"][record.alert.severity]),
    element("td", "", record.alert.signature), element("td", "", where(record)));
  return line;
}

function show(status) {
  const health = document.getElementById("health");
  health.className = `pill ${status.health}`;
  health.textContent = status.health;
  document.getElementById("uptime").textContent = `up ${clock(status.uptime)}`;
  document.getElementById("total").textContent = `${number(status.alerts)} alerts`;
  document.getElementById("sources").replaceChildren(...status.sources.map(card));
  const body = document.getElementById("alerts");
  for (const item of status.recent) {
    body.prepend(row(item));
    after = Math.max(after, item.number);
  }
  while (body.rows.length > ROWS) body.deleteRow(-1);
  document.getElementById("none").hidden = body.rows.length > 0;
  const entries = Object.entries(status.by_signature), most = Math.max(1, ...entries.map(([, count]) => count));
  document.getElementById("bars").replaceChildren(...entries.map(([name, count]) => {
    const bar = element("div", "bar"), label = element("span", "", name), length = element("i");
    label.title = name;
    length.style.width = `${100 * count / most}%`;
    bar.append(label, length, element("b", "", number(count)));
    return bar;
  }));
}

async function ask() {
  try {
    const reply = await fetch(`api/status?after=${after}`, { cache: "no-store" });
    show(await reply.json());
  } catch (error) {
    const health = document.getElementById("health");
    health.className = "pill failed";
    health.textContent = "no answer";
  }
  setTimeout(ask, 1000);
}
ask();
