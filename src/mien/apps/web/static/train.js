// Train: start a run, watch it, turn its knobs, stop it. It trains in a process of its own, which outlives this page.

import {Superseded, ask, button, complaint, el, field, keepsake, pictureOf, report, tidy} from './common.js';

const EVERY_MS = 2000;
const KIND = {diagnosis: 'diagnosis', error: 'error', rollback: 'rolled back', decision: 'decision', control: 'knob', score: 'score'};
const grouped = number => number === null || number === undefined ? '?' : Math.round(number).toLocaleString('en');

export function train(root, shared) {
  const error = complaint(), started = complaint();
  let chosen = null, version = null, timer = null, names = '';

  // --- the form ---
  const name = el('input', {type: 'text', value: 'first', autocomplete: 'off', spellcheck: false});
  const data = el('select'), recipe = el('select', {onchange: () => { about.textContent = described[recipe.value] ?? ''; }});
  const about = el('small.soft', {role: 'note'});
  const images = el('input', {type: 'text', value: '300k', autocomplete: 'off'}), seed = el('input', {type: 'number', min: 0, step: 1, value: 0});
  const toy = el('div', {}, el('p.soft', {}, 'No prepared data was found below the folder where the app was started. Make some with mien data prepare, or:'),
    button('Draw toy faces', draw));
  const begin = button('Start training', start, {className: 'primary'});
  let described = {};
  const form = el('details.form', {open: true}, el('summary', {}, 'New run'), field('Name', name), toy, field('Data', data), field('Recipe', recipe), about,
    field('Images to show', images, 'Real images shown in all, for example 300k or 2M.'), field('Seed', seed), begin, started.node);
  const list = el('div.list.runs', {role: 'group', 'aria-label': 'Runs'});
  root.append(el('div.stage', {}), el('div.controls', {}, el('div', {}, el('h2', {}, 'Runs'), list), form));
  root.classList.add('panel');

  // --- what is seen of a run ---
  const title = el('h2'), verdict = el('p.verdict', {role: 'status'}), bar = el('progress', {max: 1, value: 0, 'aria-label': 'Progress'}), rate = el('p.soft');
  const stop = button('Stop after a checkpoint', () => act('stop', {run: chosen})), resume = button('Go on', () => act('train', {resume: chosen}));
  const told = el('p.soft', {role: 'status'});
  const shot = el('img.sheet', {alt: ''}), time = el('input', {type: 'range', min: 0, step: 1}), when = el('output');
  const samples = el('div.samples', {}, el('h3', {}, 'Samples'), el('div.slider', {}, field('Drawn after', time), when), shot);
  const curves = el('div.report'), events = el('tbody'), knobs = el('div.knobs'), over = el('input', {type: 'number', min: 0, step: 1000, value: 0});
  const turn = button('Turn the knobs', control);
  const desk = el('details', {}, el('summary', {}, 'Knobs'), knobs, field('Change over', over, 'Images to change over; 0: at once.'), turn);
  const again = keepsake();
  const log = el('div', {}, el('h3', {}, 'Events'), el('div.scroll', {tabIndex: 0, role: 'region', 'aria-label': 'Events'}, el('table', {}, el('thead', {}, el('tr', {}, ['Images', 'What', 'Said'].map(text => el('th', {scope: 'col'}, text)))), events)));
  const view = el('div.watch', {hidden: true}, title, verdict, el('div.going', {}, bar, rate), el('div.row', {}, stop, resume, told), again.node,
    el('div.two', {}, samples, log), desk, el('h3', {}, 'Curves'), curves);
  const empty = el('p.soft', {}, 'Choose a run to watch it, or start a new one.');
  root.firstChild.append(error.node, empty, view);
  let drawn = [], follow = true;
  time.addEventListener('input', () => { follow = time.valueAsNumber === drawn.length - 1; picture(); });

  function picture() {
    const nimg = drawn[time.valueAsNumber];
    when.textContent = `${grouped(nimg)} images`;
    time.setAttribute('aria-valuetext', when.textContent);
    shot.src = pictureOf(chosen, nimg);
    shot.alt = `Generated faces of ${chosen} after ${when.textContent}: the same latents, a row for each combination of attributes`;
  }

  function show(run) {
    empty.hidden = true;
    view.hidden = false;
    title.textContent = chosen;
    verdict.textContent = run.verdict + (run.failure && run.state !== 'running' ? ` It ended: ${run.failure}` : '');
    const share = run.total_nimg ? run.nimg / run.total_nimg : 0;
    if (run.state === 'starting') bar.removeAttribute('value'); else bar.value = share;
    rate.textContent = [`${grouped(run.nimg)} of ${grouped(run.total_nimg)} images`, run.state === 'running' && run.images_per_s && `${Math.round(run.images_per_s)} a second`, run.left && `${run.left} left`].filter(Boolean).join(' · ');
    if (told.dataset.state !== run.state) told.textContent = '';
    told.dataset.state = run.state;
    stop.hidden = run.state !== 'running';
    resume.hidden = !run.resumable;
    again.command = run.command ?? '';
    samples.hidden = !run.samples.length;
    if (run.samples.length) {
      drawn = run.samples;
      time.max = drawn.length - 1;
      if (follow || time.valueAsNumber >= drawn.length) time.value = drawn.length - 1;
      picture();
    }
    report(curves, run.curves || '<p class="soft">The curves begin with the first tick.</p>');
    events.replaceChildren(...run.events.map(event => el(KIND[event.kind] === 'diagnosis' || event.kind === 'error' ? 'tr.warn' : 'tr', {}, el('td.num', {}, grouped(event.nimg)), el('td', {}, KIND[event.kind] ?? event.kind), el('td', {}, event.message))));
    log.hidden = !run.events.length;
    desk.hidden = run.state !== 'running' || !run.knobs.length;
    if (!knobs.contains(document.activeElement) && !knobs.querySelector('.changed'))
      knobs.replaceChildren(...run.knobs.map(knob => field(knob.called, el('input', {type: 'text', inputMode: 'decimal', name: knob.name, value: tidyKnob(knob.value), autocomplete: 'off', oninput: event => event.target.classList.add('changed')}))));
  }

  const tidyKnob = value => Math.abs(value) < 0.001 && value ? value.toExponential() : tidy(value);

  async function control() {
    const fields = [...knobs.querySelectorAll('input.changed')];
    const changes = Object.fromEntries(fields.map(one => [one.name, one.value.trim() === '' ? null : Number(one.value)]));
    if (await act('control', {run: chosen, changes, over_nimg: over.valueAsNumber || 0})) fields.forEach(one => one.classList.remove('changed'));
  }

  async function act(question, body) {
    error('');
    try {
      told.textContent = (await ask(question, body)).said ?? '';
      refresh();
      return true;
    } catch (failure) { error(failure.message); return false; }
  }

  // --- keeping up ---
  async function refresh() {
    clearTimeout(timer);
    if (root.hidden || document.hidden) return;
    try {
      const {runs, stores} = await ask('runs', {}, {panel: 'runs'});
      if (!chosen && runs.length) chosen = (runs.find(run => run.state === 'running') ?? runs[0]).name;
      roll(runs, stores);
      if (chosen) {
        const mine = chosen, seen = await ask('watch', {run: mine, since: version}, {panel: 'watch'});
        if (!seen.unchanged && mine === chosen) { version = seen.version; show(seen); }
      }
      error('');
    } catch (failure) { if (!(failure instanceof Superseded)) error(failure.message); }
    clearTimeout(timer);
    timer = setTimeout(refresh, EVERY_MS);
  }
  document.addEventListener('visibilitychange', refresh);

  function roll(runs, stores) {
    const now = JSON.stringify([runs, stores, chosen]);
    if (now === names) return;
    names = now;
    const focused = document.activeElement?.dataset?.run;
    list.replaceChildren(...runs.map(run => el('button.run', {type: 'button', 'data-run': run.name, 'aria-pressed': run.name === chosen, onclick: () => watch(run.name)},
      el('strong', {}, run.name), el('span.soft', {}, run.state === 'running' && run.total_nimg ? `running, ${Math.floor(100 * run.nimg / run.total_nimg)}%` : run.state))));
    if (!runs.length) list.append(el('p.soft', {}, 'None yet.'));
    if (focused) [...list.children].find(each => each.dataset.run === focused)?.focus();
    toy.hidden = stores.length > 0;
    data.parentElement.hidden = !stores.length;
    begin.disabled = !stores.length;
    if ([...data.options].map(option => option.value).join('|') !== stores.join('|')) {
      const before = data.value;
      data.replaceChildren(...stores.map(store => el('option', {value: store}, store)));
      if (stores.includes(before)) data.value = before;
    }
  }

  function watch(run) {
    delete told.dataset.state;
    chosen = run;
    version = null;
    follow = true;
    told.textContent = '';
    curves.shadowRoot?.querySelector('div').replaceChildren();
    refresh();
  }

  async function start() {
    started('');
    begin.disabled = true;
    try {
      const {run} = await ask('train', {name: name.value, store: data.value, preset: recipe.value, images: images.value, seed: seed.valueAsNumber});
      form.open = false;
      watch(run);
    } catch (failure) { started(failure.message); }
    begin.disabled = false;
  }

  async function draw(event) {
    started('');
    event.target.disabled = true;
    shared.say('Drawing toy faces: this takes some seconds …');
    try {
      await ask('draw');
      recipe.value = 'demo';
      images.value = '80k';
      await refresh();
    } catch (failure) { started(failure.message); }
    shared.say('');
    event.target.disabled = false;
  }

  return {
    start({presets}) {
      described = Object.fromEntries(presets.map(preset => [preset.name, preset.description]));
      recipe.replaceChildren(...presets.map(preset => el('option', {value: preset.name}, preset.name)));
      if ('demo' in described) recipe.value = 'demo';  // the one that shows something within minutes, on any machine
      recipe.dispatchEvent(new Event('change'));
    },
    shown: refresh,
    hidden: () => clearTimeout(timer),
  };
}
