// Morph: a film from face to face; scrub through it, play it, keep it.

import {Latest, Superseded, ask, button, choices, complaint, el, field, freshId, keepsake, save, slider} from './common.js';
import {inWords} from './generate.js';

const GLIDES = [['', 'as the faces have it'], ['0>1', 'from 0 to 1'], ['1>0', 'from 1 to 0'], ['0', 'held at 0'], ['1', 'held at 1']];

export function morph(root, shared) {
  const error = complaint();
  let seeds = [1, 2, 3], fresh = true, film = [], playing = null, asked = null, glides = {};
  const list = el('ol.chips', {'aria-label': 'Faces of the film, in order'});
  const number = el('input', {type: 'number', min: 0, step: 1, value: 4, inputMode: 'numeric'});
  const kept = el('div.strip.row', {role: 'group', 'aria-label': 'Kept faces'});
  const way = choices('Way', [['slerp', 'arcs'], ['spline', 'smooth'], ['lerp', 'straight']], 'slerp', () => draw());
  const loop = tick('Come back to the first face'), even = tick('Even steps, as the judge sees them');
  const frames = slider('Frames', {min: 8, max: 120, step: 4, value: 60, oninput: () => draw()});
  const attributes = el('fieldset', {hidden: true}, el('legend', {}, 'Attributes'));
  const controls = el('div.controls', {},
    el('div', {}, el('h2', {}, 'Through these faces'), list, field('Add face number', number), el('div.row', {}, button('Add', () => add(number.valueAsNumber)), button('Add a random one', () => add(Math.floor(Math.random() * 1e6)))), kept),
    attributes, way.row, el('div', {}, loop.row, even.row), frames.row);
  const screen = el('img.big.screen', {alt: ''});
  const scrub = slider('Frame', {min: 0, max: 0, step: 1, value: 0, oninput: () => { pause(); draft(); }});
  const play = button('Play', () => playing ? pause() : run());
  const again = keepsake(['mp4', 'gif', 'png'].map(kind => button(kind === 'png' ? 'Strip' : kind.toUpperCase(), () => download(kind), {'aria-label': `Download ${kind === 'png' ? 'a strip of the frames' : kind.toUpperCase()}`})));
  root.append(el('div.stage', {}, error.node, el('div.player', {}, screen, scrub.row, play), again.node), controls);
  root.classList.add('panel', 'live');
  const latest = new Latest('morph', 'morph', {show, error, busy: on => { screen.classList.toggle('busy', on); shared.say(on ? 'Drawing the film …' : ''); }});

  function tick(label) {
    const box = el('input', {type: 'checkbox', id: freshId(), onchange: () => draw()});
    return {row: el('div.tick', {}, box, el('label', {htmlFor: box.id}, label)), box};
  }

  function question() {
    const where = {}, first = {}, last = {};
    for (const [name, choice] of Object.entries(glides)) {
      const [from, to] = choice.value.split('>');
      if (to !== undefined) { first[name] = Number(from); last[name] = Number(to); } else if (from) where[name] = Number(from);
    }
    return {model: shared.about.model, seeds, frames: frames.value, where, first, last, mode: way.value, loop: loop.box.checked, even: even.box.checked, truncation: 1};
  }

  function draw() { if (shared.about && seeds.length) latest.ask(asked = question()); }

  function show(told) {
    film = told.frames;
    scrub.input.max = film.length - 1;
    if (scrub.value >= film.length) scrub.value = 0;
    again.command = told.command;
    draft();
    if (!playing && !matchMedia('(prefers-reduced-motion: reduce)').matches && !root.hidden) run();
  }

  function draft() {
    if (!film.length) return;
    screen.src = film[scrub.value];
    screen.alt = `Frame ${scrub.value + 1} of ${film.length}, through faces ${seeds.join(', ')}`;
  }

  // Faster than a new timer each time, and it stops by itself when the tab is left.
  function run() {
    if (!film.length) return;
    play.textContent = 'Pause';
    let way = 1;
    playing = setInterval(() => {
      if (root.hidden) return pause();
      let next = scrub.value + way;
      if (next >= film.length || next < 0) {
        if (asked?.loop) next = 0;
        else { way = -way; next = Math.min(film.length - 1, Math.max(0, scrub.value + way)); }  // there and back
      }
      scrub.value = next;
      draft();
    }, 1000 / 30);
  }

  function pause() { clearInterval(playing); playing = null; play.textContent = 'Play'; }

  function add(face) {
    if (!Number.isInteger(face)) return;
    seeds.push(face);
    chips();
    draw();
  }

  function chips() {
    list.replaceChildren(...seeds.map((face, i) => el('li', {}, `Face ${face}`, button('×', () => { seeds.splice(i, 1); chips(); draw(); }, {'aria-label': `Take face ${face} out`}))));
  }

  async function download(kind) {
    shared.say('Writing the film …');
    try {
      const {file, name, command} = await ask('film', {...question(), kind}, {panel: 'film'});
      save(name, file);
      again.command = command;
      error('');
    } catch (failure) { if (!(failure instanceof Superseded)) error(failure.message); }
    shared.say('');
  }

  function favourites() {
    kept.hidden = !shared.favourites.length;
    kept.replaceChildren(...shared.favourites.slice(-8).map(face => el('button.face', {type: 'button', onclick: () => add(face.seed)}, el('img', {src: face.png, alt: `Add kept ${inWords(face)}`}))));
  }

  chips();
  favourites();
  return {
    favourites,
    take(face) { seeds = [face.seed, ...seeds.filter(each => each !== face.seed)].slice(0, 3); fresh = false; chips(); draw(); },
    model(about) {
      fresh = true;
      film = [];
      again.command = '';
      favourites();
      glides = Object.fromEntries(about.attributes.map(name => [name, el('select', {onchange: () => draw()}, GLIDES.map(([value, text]) => el('option', {value}, text)))]));
      attributes.hidden = !about.attributes.length;
      attributes.replaceChildren(el('legend', {}, 'Attributes'), ...Object.entries(glides).map(([name, choice]) => field(name.replaceAll('_', ' '), choice)));
    },
    shown() {
      if (!shared.about) return error('Choose a model first: above, or on the Generate tab.');
      if (fresh) { fresh = false; error(''); draw(); }
    },
    hidden: pause,
  };
}
