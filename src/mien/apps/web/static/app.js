// The page: tabs, the choice of a model, and what the tabs share.

import {ask, el} from './common.js';
import {generate} from './generate.js';
import {morph} from './morph.js';
import {edit} from './edit.js';
import {ablate} from './ablate.js';
import {train} from './train.js';
import {compare} from './compare.js';

const status = document.querySelector('#status'), picker = document.querySelector('#model'), facts = document.querySelector('#facts');
const makers = {generate, morph, edit, ablate, train, compare};
const tabs = [...document.querySelectorAll('[role=tab]')];
const panels = {};
let shown = 'generate';

// What the tabs share. `about`: what is known of the chosen model; null while none is.
const shared = {
  about: null, start: null, favourites: [],
  say(text) { status.textContent = text; },
  open(name, face) { show(name); panels[name].take?.(face); tabs.find(tab => tab.id === `tab-${name}`).focus(); },
  choose,
  keep(face) {
    if (!this.favourites.some(each => each.id === face.id)) this.favourites.push(face);
    store();
  },
  drop(face) { this.favourites = this.favourites.filter(each => each.id !== face.id); store(); },
};

// --- favourites: kept in the browser, per snapshot, for a face's number means another face in another model -------------

const shelf = () => `mien-favourites-${shared.about?.sha256 ?? ''}`;

function store() {
  try { localStorage.setItem(shelf(), JSON.stringify(shared.favourites.slice(-100))); } catch { /* private window: kept until it closes */ }
  for (const panel of Object.values(panels)) panel.favourites?.();
}

function restore() {
  let kept = [];
  try { kept = JSON.parse(localStorage.getItem(shelf())) ?? []; } catch { /* unreadable: as good as none */ }
  shared.favourites = Array.isArray(kept) ? kept.filter(face => Number.isInteger(face?.seed) && String(face.png).startsWith('data:image/png')) : [];
}

// --- tabs ---------------------------------------------------------------------------------------------------------------

function show(name) {
  const before = shown;
  shown = name;
  for (const tab of tabs) {
    const chosen = tab.id === `tab-${name}`;
    tab.setAttribute('aria-selected', chosen);
    tab.tabIndex = chosen ? 0 : -1;
    document.getElementById(tab.id.slice(4)).hidden = !chosen;
  }
  history.replaceState(null, '', `#${name}`);
  if (before !== name) panels[before]?.hidden?.();
  panels[name]?.shown?.();
}

for (const [i, tab] of tabs.entries()) {
  tab.addEventListener('click', () => show(tab.id.slice(4)));
  tab.addEventListener('keydown', event => {
    const to = {ArrowRight: i + 1, ArrowLeft: i - 1, Home: 0, End: tabs.length - 1}[event.key];
    if (to === undefined) return;
    event.preventDefault();
    const next = tabs[(to + tabs.length) % tabs.length];
    next.focus();
    show(next.id.slice(4));
  });
}
addEventListener('hashchange', () => makers[location.hash.slice(1)] && show(location.hash.slice(1)));

// --- the model ----------------------------------------------------------------------------------------------------------

let wanted = 0;
async function choose(model) {
  const mine = ++wanted;
  picker.value = model;
  if (!model) return;
  shared.say(`Loading ${picker.selectedOptions[0]?.textContent ?? model} …`);
  try {
    const about = await ask('about', {model}, {panel: 'about'});
    if (mine !== wanted) return;  // another was picked meanwhile
    shared.about = about;
    restore();
    facts.textContent = [`${about.size} px`, about.nimg && `${Math.round(about.nimg / 1000).toLocaleString('en')} thousand images seen`].filter(Boolean).join(' · ');
    shared.say('');
    for (const panel of Object.values(panels)) panel.model?.(about);
    panels[shown]?.shown?.();
  } catch (error) {
    if (mine === wanted && error.message) { shared.say(error.message); panels.generate.failed?.(error.message); }
  }
}

picker.addEventListener('change', () => choose(picker.value));

function listModels({models}) {
  const kinds = {given: 'Named at the start', run: 'Runs', bundled: 'Came with mien'};
  const groups = Object.entries(kinds).map(([kind, label]) => {
    const some = models.filter(model => model.kind === kind);
    return some.length ? el('optgroup', {label}, some.map(model => el('option', {value: model.model}, model.title))) : null;
  });
  const chosen = picker.value;
  picker.replaceChildren(el('option', {value: ''}, models.length ? 'none chosen' : 'there is none yet'), ...groups.filter(Boolean));
  picker.value = chosen;
}

shared.refreshModels = async () => {
  shared.start = await ask('start');
  listModels(shared.start);
  return shared.start;
};

for (const [name, make] of Object.entries(makers)) panels[name] = make(document.getElementById(name), shared);
if (makers[location.hash.slice(1)]) show(location.hash.slice(1));
try {
  const start = await shared.refreshModels();
  for (const panel of Object.values(panels)) panel.start?.(start);
  if (start.given) await choose(start.given);
} catch (error) {
  shared.say(error.message);
}
panels[shown]?.shown?.();
