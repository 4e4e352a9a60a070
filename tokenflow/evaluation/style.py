"""The look of the report page: one style sheet, light and dark, from a phone to a wide screen."""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #f6f5f2; --card: #ffffff; --ink: #1c2330; --soft: #5c6575; --faint: #8b93a1; --line: #e3e1dc;
  --accent: #1f6f78; --good: #1a7f4b; --good-wash: #e4f3ea; --bad: #b3372f; --bad-wash: #fbe9e7;
  --none-wash: #efeee9;
  --series-1: #1f6f78; --series-2: #d1742b; --series-3: #5a5fc7; --series-4: #b8407e; --series-5: #6f8b1d;
  --series-6: #6b7280;
  --shadow: 0 1px 2px rgb(28 35 48 / .05), 0 4px 16px rgb(28 35 48 / .04);
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #12151b; --card: #1a1f27; --ink: #e7eaf0; --soft: #a3acbb; --faint: #7b8494; --line: #2b323d;
    --accent: #6cc5cd; --good: #63cf94; --good-wash: #17332a; --bad: #f08a80; --bad-wash: #3b2224;
    --none-wash: #262c35;
    --series-1: #6cc5cd; --series-2: #f0a35e; --series-3: #9da2f5; --series-4: #e887b8; --series-5: #b4cf5f;
    --series-6: #a3acbb;
    --shadow: none;
  }
}
* { box-sizing: border-box; }
figure { margin: 0; }
html { scroll-behavior: smooth; scroll-padding-top: 4rem; -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.55;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif; }
.page { max-width: 1120px; margin: 0 auto; padding: 0 24px 72px; }
header { padding: 56px 0 20px; }
h1 { font-size: clamp(1.8rem, 4.5vw, 2.6rem); line-height: 1.15; letter-spacing: -.02em; margin: 0 0 .4rem;
  font-weight: 680; }
h2 { font-size: 1.45rem; letter-spacing: -.012em; margin: 0 0 .35rem; font-weight: 650; }
header p, .intro { color: var(--soft); margin: 0; max-width: 68ch; }
header p { font-size: 1.08rem; }
nav { position: sticky; top: 0; z-index: 2; background: var(--paper); border-bottom: 1px solid var(--line); }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: .3rem 1.4rem; margin: 0; padding: .7rem 0; }
nav a { color: var(--soft); text-decoration: none; white-space: nowrap; font-size: .93rem; }
nav a:hover, nav a:focus-visible { color: var(--accent); }
section { padding: 44px 0 0; }
section > h2 + p { margin-top: 0; }
section > * + *, section > figure + * { margin-top: 20px; }
.prose { max-width: 72ch; margin-bottom: 0; }
.numbers { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 196px), 1fr)); gap: 14px; }
.number { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 14px 16px 13px;
  box-shadow: var(--shadow);
  display: flex; flex-direction: column; }
.number .name { color: var(--soft); font-size: .88rem; }
.number .figure { font-size: 1.85rem; font-weight: 640; letter-spacing: -.02em; line-height: 1.25;
  font-variant-numeric: tabular-nums; }
.number .figure small { font-size: .95rem; font-weight: 500; color: var(--soft); letter-spacing: 0;
  margin-left: .22em; }
.number .figure.absent { font-size: 1.1rem; color: var(--faint); font-weight: 500; letter-spacing: 0;
  line-height: 2.1; }
.number .note { margin-top: 2px; color: var(--faint); font-size: .82rem; line-height: 1.4;
  overflow-wrap: anywhere; }
.number .mark { display: table; margin: 3px 0; }
.mark { display: inline-block; border-radius: 99px; font-size: .74rem; font-weight: 600; padding: .06rem .5rem;
  white-space: nowrap; background: var(--none-wash); color: var(--soft); }
.mark.good { background: var(--good-wash); color: var(--good); }
.mark.bad { background: var(--bad-wash); color: var(--bad); }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 16px; }
figure { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 16px 18px;
  box-shadow: var(--shadow); min-width: 0; }
figcaption { font-weight: 620; font-size: .97rem; margin-bottom: .5rem; }
figcaption small { display: block; font-weight: 400; color: var(--faint); font-size: .82rem; min-height: 1.2em;
  }
.chart { max-width: 720px; }
.chart svg { display: block; width: 100%; height: auto; overflow: visible;
  font: 13px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
.empty { color: var(--faint); }
.grid { stroke: var(--line); stroke-width: 1; } .axis { stroke: var(--faint); stroke-width: 1; }
.tick, .label, .value { fill: var(--soft); font-variant-numeric: tabular-nums; } .label { fill: var(--faint); }
.end { text-anchor: end; } .middle, .value { text-anchor: middle; }
.value { fill: var(--ink); font-size: 12px; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.line.raw { stroke-width: 1; opacity: .28; }
.line.s1, .dot.s1 { stroke: var(--series-1); } .line.s2, .dot.s2 { stroke: var(--series-2); }
.line.s3, .dot.s3 { stroke: var(--series-3); }
.line.s4, .dot.s4 { stroke: var(--series-4); } .line.s5, .dot.s5 { stroke: var(--series-5); }
.line.s6, .dot.s6 { stroke: var(--series-6); }
.dot { fill: var(--card); stroke-width: 2; opacity: 0; } .dot:hover, .dot.alone { opacity: 1; }
.bar, .area { fill: var(--series-1); } .bar { opacity: .88; } g:hover > .bar { opacity: 1; }
.area { opacity: .75; }
.reference { stroke: var(--series-2); stroke-width: 1.5; stroke-dasharray: 5 4; }
.legend { list-style: none; margin: .5rem 0 0; padding: 0; display: flex; flex-wrap: wrap; gap: .15rem 1.1rem;
  font-size: .86rem; color: var(--soft); }
.legend b { color: var(--ink); font-weight: 600; font-variant-numeric: tabular-nums; }
.key { display: inline-block; width: 14px; height: 3px; border-radius: 2px; vertical-align: middle;
  margin-right: .4rem; }
.key.s1 { background: var(--series-1); } .key.s2 { background: var(--series-2); }
.key.s3 { background: var(--series-3); }
.key.s4 { background: var(--series-4); } .key.s5 { background: var(--series-5); }
.key.s6 { background: var(--series-6); }
.pictures { overflow-x: auto; padding: 16px 18px; }
.pictures table { border-collapse: separate; border-spacing: 0 6px; width: auto; }
.pictures th { position: sticky; left: 0; z-index: 1; background: var(--card); text-align: left;
  font-weight: 500; color: var(--soft); font-size: .86rem;
  padding: 0 14px 0 0; vertical-align: middle; width: 8.5rem; min-width: 6.2rem; border: 0; }
.pictures td { padding: 0 6px 0 0; border: 0; vertical-align: top; }
.pictures img { display: block; width: 104px; height: auto; border-radius: 4px; background: var(--none-wash); }
.pictures img.tiny { image-rendering: pixelated; }
.pictures .caption { width: 104px; font-size: .76rem; line-height: 1.35; color: var(--soft); padding-top: 4px;
  overflow-wrap: anywhere; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  box-shadow: var(--shadow); }
.scroll table { border-collapse: collapse; width: 100%; font-size: .93rem; }
.scroll caption { text-align: left; font-weight: 620; padding: 14px 18px 4px; }
.scroll th, .scroll td { padding: .5rem 18px; text-align: left; border-top: 1px solid var(--line);
  vertical-align: top; }
.scroll thead th { color: var(--faint); font-weight: 500; font-size: .84rem; border-top: 0;
  white-space: nowrap; }
.scroll td.numeric, .scroll th.numeric { text-align: right; font-variant-numeric: tabular-nums;
  white-space: nowrap; }
.scroll td.long { min-width: 18rem; }
.scroll tbody tr:hover { background: color-mix(in srgb, var(--accent) 5%, transparent); }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 14px 18px;
  overflow-x: auto; margin-bottom: 0;
  font: .84rem/1.55 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
footer { margin-top: 56px; padding-top: 16px; border-top: 1px solid var(--line); color: var(--faint);
  font-size: .85rem; }
@media (max-width: 600px) {
  .page { padding: 0 16px 48px; } header { padding: 32px 0 14px; } section { padding-top: 32px; }
  .numbers { grid-template-columns: repeat(2, 1fr); gap: 10px; } .number { padding: 11px 12px; }
.number .figure { font-size: 1.5rem; }
  figure { padding: 13px 12px; } .chart svg { font-size: 16px; } .value { font-size: 14px; }
  .pictures th { min-width: 5rem; width: 5rem; padding-right: 8px; font-size: .8rem; }
.pictures img, .pictures .caption { width: 84px; }
  .scroll th, .scroll td { padding: .45rem 12px; }
}
@media print { nav { display: none; } body { background: #fff; }
figure, .number, .scroll { break-inside: avoid; box-shadow: none; } }
"""
