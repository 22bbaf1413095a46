// Edit: one face or photo, changed by attributes and directions, live.

import {Latest, asUri, ask, Superseded, button, complaint, el, field, freshId, keepsake, save, slider} from './common.js';
import {facePicker, judged} from './face.js';

export function edit(root, shared) {
  const error = complaint();
  let face = null, own = {}, attributes = {}, directions = {}, loaded = [], accepted = loaded, answer = null, fresh = true, filled = null;
  const picker = facePicker(shared, 'edit', changed, error, {photos: true});
  const sliders = el('fieldset.sliders', {hidden: true}, el('legend', {}, 'Attributes'));
  const ways = el('fieldset.sliders', {}, el('legend', {}, 'Directions'));
  const wanted = el('select');
  const learn = el('div', {}, field('Learn a direction', wanted, 'From faces that the model draws and the judge judges.'), button('Learn it', study));
  const strength = slider('Strength of it all', {min: 0, max: 2, step: 0.05, value: 1, oninput: () => draw()});
  const file = el('input.unseen', {type: 'file', accept: '.json,application/json', id: freshId(), onchange: load});
  const used = el('p.soft', {role: 'status'});
  const controls = el('div.controls', {}, picker.node, sliders, ways, learn, strength.row,
    el('div', {}, el('div.row', {}, file, el('label.button', {htmlFor: file.id}, 'Use a saved edit'), button('Start over', reset)), used));
  const photo = shot('Photo'), before = shot('Before'), after = shot('After');
  photo.node.hidden = true;
  const table = el('div.judged');
  const again = keepsake([
    button('Download PNG', () => save('edit.png', answer.after)),
    button('Edit', () => save('edit.json', asUri(answer.edit, 'application/json')), {'aria-label': 'Download the edit as JSON'}),
  ]);
  const latent = button('Face', () => save('face.json', asUri(answer.face, 'application/json')), {'aria-label': 'Download the face as JSON'});
  again.node.querySelector('.row').append(latent);
  const hint = el('p.soft', {}, 'Move a slider, and see what changes, and what changes with it.');
  root.append(el('div.stage', {}, error.node, el('div.trio', {}, photo.node, before.node, after.node), hint, table, again.node), controls);
  root.classList.add('panel', 'live');
  const latest = new Latest('edit', 'edit', {show, error, fail: refused, busy: on => after.node.classList.toggle('busy', on)});

  function question() {
    const to = Object.fromEntries(Object.entries(attributes).filter(([name, row]) => Math.abs(row.value - own[name]) > 1e-6).map(([name, row]) => [name, row.value]));
    const along = Object.fromEntries(Object.entries(directions).filter(([, row]) => row.value !== 0).map(([name, row]) => [name, row.value]));
    return {model: shared.about.model, face, to, along, edits: loaded, strength: strength.value, judge: true};
  }

  function draw() { if (face && shared.about) latest.ask(question()); }

  function show(told, {edits}) {
    answer = told;
    accepted = edits;
    before.show(told.before, 'The face before');
    after.show(told.after, told.command ? `The face after: ${told.command}` : 'The face, not changed yet');
    photo.node.hidden = !told.photo;
    if (told.photo) photo.show(told.photo, 'Your photo, cropped');
    hint.hidden = told.steps > 0;
    table.hidden = !told.steps;
    judged(table, told);
    again.command = told.command ?? '';
    latent.hidden = !told.face;
  }

  function refused(text) {
    error(text);
    if (loaded !== accepted) use(accepted);  // the saved edit that was just given is the trouble
  }

  function changed(chosen, picture) {
    face = chosen;
    if (!face) { latest.cancel(); photo.node.hidden = false; photo.show(picture, 'Your photo, cropped'); return; }
    own = {...face.attributes};
    for (const [name, row] of Object.entries(attributes)) row.value = own[name] ?? 0;
    draw();
  }

  function use(edits) {
    loaded = edits;
    used.textContent = edits.length ? `${edits.length} saved ${edits.length > 1 ? 'edits are' : 'edit is'} applied first.` : '';
  }

  function reset() {
    use([]);
    accepted = loaded;
    for (const [name, row] of Object.entries(attributes)) row.value = own[name] ?? 0;
    for (const row of Object.values(directions)) row.value = 0;
    strength.value = 1;
    draw();
  }

  async function load() {
    const given = file.files[0];
    file.value = '';
    if (!given) return;
    if (given.size > 1e6) return error('That file is too large to be an edit.');
    use([...loaded, await given.text()]);
    draw();
  }

  async function fill(question = 'directions', more = {}) {
    const model = shared.about.model;
    try {
      const told = await ask(question, {model, ...more}, {panel: 'edit-directions'});
      if (model !== shared.about.model) return;
      const before = directions;
      directions = Object.fromEntries(told.directions.map(name => [name, before[name] ?? slider(nice(name), {min: -4, max: 4, step: 0.1, value: 0, oninput: () => draw()})]));
      ways.replaceChildren(el('legend', {}, 'Directions'), ...Object.values(directions).map(row => row.row));
      const left = told.learnable.filter(name => !(name in directions));
      wanted.replaceChildren(...left.map(name => el('option', {value: name}, name.replaceAll('_', ' '))));
      if (left.includes('Young')) wanted.value = 'Young';
    } catch (failure) { if (!(failure instanceof Superseded)) error(failure.message); }
  }

  async function study(event) {
    if (!wanted.value) return;
    const {target} = event;
    target.disabled = true;
    shared.say(`Learning ${wanted.value.replaceAll('_', ' ')}: this takes some seconds …`);
    await fill('learn', {attribute: wanted.value});
    shared.say('');
    target.disabled = false;
  }

  return {
    favourites: picker.favourites,
    take(given) { fresh = false; picker.take(given); },
    model(about) {
      face = null; fresh = true; filled = null; directions = {}; use([]); accepted = loaded;
      attributes = Object.fromEntries(about.attributes.map(name => [name, slider(name.replaceAll('_', ' '), {min: -1, max: 2, step: 0.05, value: 0, oninput: () => draw()})]));
      sliders.hidden = !about.attributes.length;
      sliders.replaceChildren(el('legend', {}, 'Attributes'), ...Object.values(attributes).map(row => row.row));
      again.command = '';
      picker.favourites();
    },
    shown() {
      if (!shared.about) return error('Choose a model first: above, or on the Generate tab.');
      if (filled !== shared.about.model) { filled = shared.about.model; fill(); }
      if (fresh) { fresh = false; error(''); picker.start(); }
    },
  };
}

const nice = name => name.startsWith('sefa-') ? `Unnamed ${name.slice(5)}` : name.replaceAll('_', ' ');

// A picture with its name under it.
export function shot(name) {
  const image = el('img.big', {alt: ''});
  return {node: el('figure', {}, image, el('figcaption.soft', {}, name)), image, show(src, alt) { image.src = src; image.alt = alt; }};
}
