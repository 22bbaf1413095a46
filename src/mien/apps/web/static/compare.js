// Compare: runs side by side, as `mien compare` does it.

import {Latest, asUri, button, complaint, el, freshId, keepsake, report, save} from './common.js';

export function compare(root, shared) {
  const list = el('fieldset.list', {}, el('legend', {}, 'Runs'));
  const error = complaint();
  const host = el('div.report');
  const lead = el('p.soft', {}, 'Choose two runs or more.');
  let told = null;
  const again = keepsake([
    button('Download page', () => save('compare.html', asUri(told.html, 'text/html'))),
    button('Markdown', () => save('compare.md', asUri(told.markdown, 'text/markdown')), {'aria-label': 'Download Markdown'}),
    button('JSON', () => save('compare.json', asUri(JSON.stringify(told.json, null, 1), 'application/json')), {'aria-label': 'Download JSON'}),
  ]);
  root.append(el('div.stage', {}, error.node, lead, again.node, host), el('div.controls', {}, list));
  root.classList.add('panel');

  const latest = new Latest('compare', 'compare', {
    show(answer) {
      told = answer;
      const page = new DOMParser().parseFromString(answer.html, 'text/html');
      lead.hidden = true;
      host.hidden = false;
      report(host, page.querySelector('header .verdict').outerHTML + (page.querySelector('header .runs')?.outerHTML ?? '') + page.querySelector('main').innerHTML);
      again.command = answer.command;
    },
    error,
    fail: text => { error(text); clear(); },
    busy: on => shared.say(on ? 'Comparing …' : ''),
  });

  function clear() { host.hidden = true; again.command = ''; }

  function change() {
    const runs = [...list.querySelectorAll('input:checked')].map(box => box.value);
    if (runs.length > 1) return latest.ask({runs});
    latest.cancel();
    error('');
    clear();
    lead.hidden = false;
  }

  function start({runs, runs_folder}) {
    const before = new Set([...list.querySelectorAll('input:checked')].map(box => box.value));
    const boxes = runs.map(name => { const box = el('input', {type: 'checkbox', id: freshId(), value: name, checked: before.has(name), onchange: change}); return el('div.tick', {}, box, el('label', {htmlFor: box.id}, name)); });
    list.replaceChildren(el('legend', {}, 'Runs'), ...(boxes.length ? boxes : [el('p.soft', {}, `None in ${runs_folder}.`)]));
  }

  return {start, async shown() { try { start(await shared.refreshModels()); } catch (failure) { error(failure.message); } }};
}
