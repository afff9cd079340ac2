"""The style sheet of a report."""

STYLE = """
:root { color-scheme: light dark; --paper: #fbfaf8; --card: #fff; --ink: #22252a; --soft: #6a7078; --line: #e4e2dd;
  --accent: #1f6f78; --tint: #eef5f5; --warn: #9a4a12; --warn-tint: #fbf1e7;
  --s0: #e9e5dc; --s1: #dcebe9; --s2: #f3e3d3; --s3: #e5e0ee;
  --p0: #1f6f78; --p1: #5a9a8f; --p2: #2c5aa0; --p3: #6b84cf; --p4: #a7b6e6; --p5: #c4652b; --p6: #e0a53c;
  --p7: #b0413e; --p8: #7a4d9e; --p9: #b48fd0; --p10: #d77fa3; --p11: #8a9aa3; --p12: #d3cfc6; --p13: #e4e1da; }
@media (prefers-color-scheme: dark) { :root { --paper: #15171a; --card: #1c1f23; --ink: #e6e5e1; --soft: #979da6;
  --line: #30343a; --accent: #6cc0c8; --tint: #1b2a2c; --warn: #e9a66b; --warn-tint: #2d2218;
  --s0: #2b2f35; --s1: #21383a; --s2: #3b2f22; --s3: #332d40;
  --p0: #4aa3ab; --p1: #79c2b4; --p2: #5f92dd; --p3: #8fa6ea; --p4: #bfcaf2; --p5: #e08a52; --p6: #edbd62;
  --p7: #e0716b; --p8: #a57fd0; --p9: #cbb0e2; --p10: #e9a0bf; --p11: #94a3ad; --p12: #4b5058; --p13: #353a41; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 3rem 1.25rem 2rem; }
header { margin-bottom: 2.5rem; }
h1 { font-size: 2rem; line-height: 1.2; letter-spacing: -.02em; font-weight: 650; margin: 0 0 .4rem;
  overflow-wrap: anywhere; }
header p { margin: 0; color: var(--soft); }
h2 { font-size: 1.2rem; font-weight: 600; margin: 0 0 1rem; padding-top: 1.25rem; border-top: 1px solid var(--line); }
.part { margin-bottom: 2.75rem; }
.note, figcaption, footer { color: var(--soft); font-size: .875rem; max-width: 44rem; }
.note { margin: .75rem 0 1.5rem; }
.empty { color: var(--soft); font-style: italic; }
.hidden { position: absolute; clip-path: inset(50%); width: 1px; height: 1px; overflow: hidden; }
.warning { background: var(--warn-tint); color: var(--warn); border-radius: .5rem; padding: .75rem 1rem;
  margin: 0 0 1.25rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .6rem 1.25rem .6rem 0; border-bottom: 1px solid var(--line); }
tr > :last-child { padding-right: 0; }
thead th { color: var(--soft); font-weight: 500; font-size: .875rem; vertical-align: bottom; }
tbody th { font-weight: 500; }
td { white-space: nowrap; }
small { color: var(--soft); font-size: .8125rem; }
.n { text-align: right; }
b { font-weight: 600; }
.grid-of-charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 18rem), 1fr)); gap: 1rem; }
table.narrow { max-width: 34rem; }
figure { margin: 1.5rem 0 0; }
.grid-of-charts figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: .75rem;
  padding: 1rem 1rem .5rem; }
h3 { display: flex; justify-content: space-between; gap: .75rem; font-size: .9375rem; font-weight: 600; margin: 0; }
.last { color: var(--accent); font-size: .8125rem; font-variant-numeric: tabular-nums; white-space: nowrap; }
.grid-of-charts figure p { color: var(--soft); font-size: .8125rem; margin: 0 0 .5rem; }
svg { display: block; }
svg.chart { width: 100%; height: auto; }
svg.square { width: 100%; max-width: 20rem; height: auto; }
svg.bar { width: 7.5rem; height: 1rem; }
svg text { fill: var(--soft); font-size: 10.5px; font-variant-numeric: tabular-nums; }
svg .end { text-anchor: end; }
svg .mid { text-anchor: middle; }
svg .grid { stroke: var(--line); }
svg .half { stroke: var(--soft); stroke-dasharray: 2 3; }
svg .line { fill: none; stroke: var(--accent); stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
svg .raw { fill: none; stroke: var(--accent); stroke-width: 1; opacity: .35; }
svg .dot { fill: var(--accent); }
svg .bubble { fill: var(--accent); fill-opacity: .55; stroke: var(--card); }
.facts td { white-space: normal; padding-right: 0; }
.facts th { width: 7rem; vertical-align: top; }
mark { background: var(--tint); color: var(--accent); border-radius: .2rem; }
article { margin: 0 0 2rem; }
.prompt { border-left: 3px solid var(--line); padding: .1rem 0 .1rem 1rem; margin-bottom: .9rem;
  white-space: pre-wrap; overflow-wrap: anywhere; }
.prompt p { margin: 0 0 .2rem; }
.system { color: var(--soft); font-size: .8125rem; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; }
.pair.one { grid-template-columns: 1fr; }
.pair section { display: flex; flex-direction: column; background: var(--card); border: 1px solid var(--line);
  border-radius: .75rem; padding: .9rem 1.1rem; min-width: 0; }
.pair .second { background: var(--tint); }
.pair p { margin: .3rem 0 .75rem; white-space: pre-wrap; overflow-wrap: anywhere; }
h4 { color: var(--soft); font-size: .8125rem; font-weight: 600; margin: 0; }
.second h4 { color: var(--accent); }
.scores { display: flex; flex-wrap: wrap; gap: .1rem 1rem; margin-top: auto; color: var(--soft); font-size: .8125rem;
  font-variant-numeric: tabular-nums; }
.scores b { color: var(--ink); }
details > summary { cursor: pointer; color: var(--accent); margin-bottom: 1.5rem; }
footer { margin-top: 3rem; }
.p0 { fill: var(--p0); background: var(--p0); } .p1 { fill: var(--p1); background: var(--p1); }
.p2 { fill: var(--p2); background: var(--p2); } .p3 { fill: var(--p3); background: var(--p3); }
.p4 { fill: var(--p4); background: var(--p4); } .p5 { fill: var(--p5); background: var(--p5); }
.p6 { fill: var(--p6); background: var(--p6); } .p7 { fill: var(--p7); background: var(--p7); }
.p8 { fill: var(--p8); background: var(--p8); } .p9 { fill: var(--p9); background: var(--p9); }
.p10 { fill: var(--p10); background: var(--p10); } .p11 { fill: var(--p11); background: var(--p11); }
.p12 { fill: var(--p12); background: var(--p12); } .p13 { fill: var(--p13); background: var(--p13); }
.s0 { fill: var(--s0); } .s1 { fill: var(--s1); } .s2 { fill: var(--s2); } .s3 { fill: var(--s3); }
svg.wide { min-width: 40rem; }
svg .name { fill: var(--ink); font-size: 12.5px; }
svg .sum { fill: var(--ink); font-size: 12.5px; font-weight: 600; }
svg .mark line { stroke: var(--ink); stroke-width: 1.5; }
svg polygon, svg rect { stroke: var(--paper); stroke-width: .4; }
.unit { color: var(--soft); font-size: .75rem; margin: 0 0 .2rem; }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1.1rem; list-style: none; margin: 0 0 1.1rem; padding: 0;
  color: var(--soft); font-size: .8125rem; }
.legend i, .key { display: inline-block; width: .7rem; height: .7rem; border-radius: .2rem; margin-right: .45rem; }
.share { width: 7rem; }
.share i { display: block; height: .55rem; border-radius: .2rem; }
.dense { font-size: .875rem; }
.dense th, .dense td { padding: .42rem 1rem .42rem 0; }
.total td, .total th { border-top: 1px solid var(--soft); }
code { font: .8125rem ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 13rem), 1fr)); gap: 1rem; }
.tiles div { background: var(--card); border: 1px solid var(--line); border-radius: .75rem; padding: .9rem 1.1rem; }
.tiles span, .tiles small { display: block; color: var(--soft); font-size: .8125rem; }
.tiles b { display: block; font-size: 1.5rem; letter-spacing: -.01em; line-height: 1.35;
  font-variant-numeric: tabular-nums; }
@media (max-width: 40rem) { main { padding-top: 1.75rem; } h1 { font-size: 1.5rem; }
  .pair { grid-template-columns: 1fr; gap: .6rem; } th, td { padding-right: .8rem; } }
"""
