"""The look of a report: one style sheet, light and dark, from phone to desktop, nothing loaded from anywhere."""

STYLE = """
:root { color-scheme: light dark;
  --page: #fbfbfa; --card: #ffffff; --ink: #1d1f23; --soft: #62666d; --faint: #8d9199; --line: #e6e6e3; --tint: #f3f3f0;
  --accent: #2457c5; --good: #1c7a4c; --warn: #9a5b00; --warn-tint: #fdf3e1; --bad: #b3261e; --bad-tint: #fcecea;
  --s0: #8a8f98; --s1: #2457c5; --s2: #c2570c; --s3: #1c7a4c; --s4: #8441a4; }
@media (prefers-color-scheme: dark) { :root {
  --page: #15161a; --card: #1c1e23; --ink: #e8e9ec; --soft: #a3a7b0; --faint: #7d828c; --line: #2d3037; --tint: #23252b;
  --accent: #8ab0ff; --good: #6fcf9b; --warn: #f0b45e; --warn-tint: #33290f; --bad: #ff8f86; --bad-tint: #381d1b;
  --s0: #8d929c; --s1: #8ab0ff; --s2: #ffa25e; --s3: #6fcf9b; --s4: #cf9be8; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto,
  "Helvetica Neue", "Liberation Sans", Arial, sans-serif; font-variant-numeric: tabular-nums; -webkit-text-size-adjust: 100%; }
main { max-width: 1120px; margin: 0 auto; padding: 40px 24px 72px; }
h1 { font-size: 30px; line-height: 1.2; letter-spacing: -0.015em; margin: 0; font-weight: 650; overflow-wrap: anywhere; }
h2 { font-size: 19px; letter-spacing: -0.005em; margin: 48px 0 14px; font-weight: 620; }
h3 { font-size: 14px; margin: 0 0 6px; font-weight: 600;
  font-family: ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; }
p { margin: 0 0 10px; }
a { color: var(--accent); }
header p { color: var(--soft); margin: 6px 0 0; overflow-wrap: anywhere; }
.small, figcaption, footer { color: var(--soft); font-size: 13.5px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 24px; }
.hero { display: grid; grid-template-columns: minmax(0, 1fr) auto; gap: 32px; margin-top: 28px; align-items: center; }
.hero.alone { grid-template-columns: 1fr; }
.hero img { width: 320px; }
.metric { color: var(--soft); font-size: 15px; }
.number { font-size: 64px; line-height: 1.1; font-weight: 660; letter-spacing: -0.03em; margin: 2px 0 2px;
  white-space: nowrap; }
.number span { margin-left: 12px; font-size: 22px; font-weight: 450; letter-spacing: 0; color: var(--soft); }
.badge { display: inline-block; border-radius: 99px; padding: 2px 11px; font-size: 13.5px; font-weight: 600;
  background: var(--tint);
  color: var(--soft); margin: 6px 6px 0 0; white-space: nowrap; }
.badge.exact, .badge.finished { color: var(--good); } .badge.bound { color: var(--accent); }
.badge.estimate, .badge.unnormalized, .badge.stopped, .badge.running { color: var(--warn); }
  .badge.failed { color: var(--bad); }
.meaning { max-width: 62ch; margin: 14px 0 0; }
.compare { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); gap: 16px; margin-top: 16px; }
.compare .card { padding: 18px 24px; }
.compare b { font-size: 24px; font-weight: 620; letter-spacing: -0.01em; }
.compare p { margin: 2px 0 0; }
.notice { border-radius: 12px; padding: 14px 20px; margin-top: 24px; background: var(--warn-tint); color: var(--warn);
  overflow-wrap: anywhere; }
.notice.failed { background: var(--bad-tint); color: var(--bad); }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 310px), 1fr)); gap: 16px; }
.charts .card { padding: 16px 16px 10px; }
.charts .lead { grid-column: 1 / -1; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { font-size: 12px; fill: var(--faint); font-family: inherit; }
svg text.end { fill: revert-layer; font-weight: 600; }
svg polyline { stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round; }
svg .grid { stroke: var(--line); stroke-width: 1; }
.narrow { display: none; }
figure { margin: 0; }
img { max-width: 100%; height: auto; display: block; image-rendering: pixelated; border-radius: 6px; }
figcaption { margin-top: 6px; }
.strip { display: grid; grid-template-columns: repeat(auto-fill, minmax(160px, 1fr)); gap: 20px 16px; }
.strip img { width: 100%; }
.pictures { display: flex; flex-wrap: wrap; gap: 24px 20px; align-items: start; }
.pictures figure { max-width: calc(50% - 10px); }
.scroll { overflow-x: auto; padding: 8px 24px; }
table { border-collapse: collapse; width: 100%; font-size: 14.5px; }
th, td { text-align: left; padding: 9px 20px 9px 0; border-top: 1px solid var(--line); white-space: nowrap; }
thead th { border-top: 0; color: var(--soft); font-weight: 500; font-size: 13.5px; }
th:last-child, td:last-child { padding-right: 0; }
td.n, th.n { text-align: right; }
td:first-child, code, pre { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace;
  font-size: 13.5px; }
pre { margin: 0; padding: 16px 20px; background: var(--tint); border-radius: 10px; overflow-x: auto; line-height: 1.6; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 230px), 1fr)); gap: 18px 24px; margin: 0; }
.facts dt { color: var(--soft); font-size: 13.5px; } .facts dd { margin: 0; overflow-wrap: anywhere; }
details { margin-top: 16px; } summary { cursor: pointer; color: var(--soft); padding: 4px 0; }
  details[open] summary { margin-bottom: 10px; }
footer { margin-top: 56px; }
@media (max-width: 760px) {
  main { padding: 24px 16px 48px; } h1 { font-size: 24px; } h2 { margin-top: 36px; } .card { padding: 18px; }
  .hero { grid-template-columns: 1fr; gap: 22px; } .hero img { width: 100%; } .number { font-size: 50px; }
  .number span { margin-left: 12px; font-size: 18px; }
  .strip { grid-template-columns: 1fr 1fr; } .wide { display: none; } .pictures figure { max-width: 100%; } .narrow { display: block; }
  .scroll { padding: 8px 18px; } }
@media print { body { background: none; } .card { break-inside: avoid; } }
"""
