// Ablate: click a place of the face, see the channels that draw it, switch them off or turn them up.

import {Latest, asUri, button, choices, complaint, el, field, freshId, keepsake, save, slider} from './common.js';
import {facePicker, judged} from './face.js';
import {shot} from './edit.js';

export function ablate(root, shared) {
  const error = complaint();
  let face = null, chosen = [], place = null, found = null, answer = null, fresh = true;
  const picker = facePicker(shared, 'ablate', changed, error);
  const layer = el('select', {onchange: () => look()});
  const part = el('select', {onchange: () => { const it = found?.parts.find(each => each.name === part.value); if (it) go(it.x, it.y); }});
  const across = slider('Across', {min: 0, max: 1, step: 0.02, value: 0.5, oninput: () => go(across.value, down.value)});
  const down = slider('Down', {min: 0, max: 1, step: 0.02, value: 0.7, oninput: () => go(across.value, down.value)});
  const where = choices('Change them', [['here', 'only there'], ['all', 'everywhere']], 'here', () => { chosen.forEach(each => { each.region = where.value === 'here' ? each.at : null; }); draw(); });
  const times = slider('Times', {min: 0, max: 3, step: 0.1, value: 0, oninput: () => draw(), hint: '0 switches a channel off, 1 leaves it, more makes it stronger.'});
  const list = el('fieldset.list.channels', {}, el('legend', {}, 'Channels that draw it'));
  const so = el('div');
  const controls = el('div.controls', {}, picker.node,
    el('div', {}, field('Part of the face', part), el('details', {}, el('summary', {}, 'Place by numbers'), across.row, down.row), field('Layer', layer, 'Small maps: shape and pose; large ones: detail.')),
    list, where.row, times.row, so);
  const mark = el('span.mark', {hidden: true});
  const picture = el('img.big', {alt: ''});
  const before = el('figure', {}, el('button.place', {type: 'button', 'aria-label': 'Choose a place of the face', onclick: point}, picture, mark), el('figcaption.soft', {}, 'Click a place of the face'));
  const after = shot('With the ticked channels changed');
  const table = el('div.judged');
  const again = keepsake([
    button('Download PNG', () => save('ablated.png', answer.after)),
    button('Edit', () => save('edit.json', asUri(answer.edit, 'application/json')), {'aria-label': 'Download the edit as JSON'}),
  ]);
  const latent = button('Face', () => save('face.json', asUri(answer.face, 'application/json')), {'aria-label': 'Download the face as JSON'});
  again.node.querySelector('.row').append(latent);
  root.append(el('div.stage', {}, error.node, el('div.trio', {}, before, after.node), table, again.node), controls);
  root.classList.add('panel', 'live');
  const finder = new Latest('channels', 'ablate-channels', {show: listed, error, busy: on => list.classList.toggle('busy', on)});
  const latest = new Latest('edit', 'ablate', {show, error, busy: on => after.node.classList.toggle('busy', on)});

  function point(event) {
    const box = picture.getBoundingClientRect();
    if (event.detail === 0) return go(across.value, down.value);  // by keyboard: where the sliders say
    go(Math.min(1, Math.max(0, (event.clientX - box.left) / box.width)), Math.min(1, Math.max(0, (event.clientY - box.top) / box.height)));
  }

  function go(x, y) {
    place = {x, y};
    across.value = x;
    down.value = y;
    mark.hidden = false;
    mark.style.left = `${100 * x}%`;
    mark.style.top = `${100 * y}%`;
    const near = found?.parts.find(each => Math.hypot(each.x - x, each.y - y) < 0.02);
    part.value = near?.name ?? '';
    look();
  }

  function look() { if (face && place && shared.about) finder.ask({model: shared.about.model, face, ...place, layer: layer.value || null}); }

  function listed(told) {
    found = told;
    if ([...layer.options].map(option => option.value).join() !== told.layers.join()) layer.replaceChildren(...told.layers.map(name => el('option', {value: name}, name)));
    layer.value = told.layer;
    const names = ['', ...told.parts.map(each => each.name)];
    if ([...part.options].map(option => option.value).join() !== names.join()) part.replaceChildren(...names.map(name => el('option', {value: name}, name || 'where you clicked')));
    part.value = told.parts.find(each => Math.hypot(each.x - place.x, each.y - place.y) < 0.02)?.name ?? '';
    const most = Math.max(...told.channels.map(each => each.inside), 1e-9);
    list.replaceChildren(el('legend', {}, 'Channels that draw it'), ...told.channels.map(each => {
      const box = el('input', {type: 'checkbox', id: freshId(), checked: chosen.some(one => one.layer === told.layer && one.channel === each.channel), onchange: () => tick(box.checked, told.layer, each.channel, told.region)});
      return el('div.tick', {}, box, el('label', {htmlFor: box.id}, `Channel ${each.channel}`), el('span.bar', {'aria-hidden': 'true'}, el('i', {style: `width:${100 * each.inside / most}%`})),
        el('span.soft', {title: `Without it the place changes by ${percent(each.inside)}, the rest by ${percent(each.outside)}`}, percent(each.inside)));
    }));
  }

  const percent = share => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)}%`;

  function tick(on, name, channel, region) {
    chosen = chosen.filter(each => each.layer !== name || each.channel !== channel);
    if (on) chosen.push({layer: name, channel, at: region, region: where.value === 'here' ? region : null});
    draw();
  }

  function draw() {
    so.replaceChildren(...(chosen.length ? [el('p.soft', {}, `${chosen.length} changed: ${chosen.map(each => `${each.channel} of ${each.layer}`).join(', ')}.`), button('None of them', clear)] : []));
    if (!face || !shared.about) return;
    const groups = new Map();
    for (const each of chosen) {
      const key = JSON.stringify([each.layer, each.region]);
      groups.set(key, [...(groups.get(key) ?? []), each.channel]);
    }
    const channels = [...groups].map(([key, numbers]) => { const [name, region] = JSON.parse(key); return {layer: name, channels: numbers, value: times.value, region}; });
    latest.ask({model: shared.about.model, face, to: {}, along: {}, channels, judge: true});
  }

  function clear() {
    chosen = [];
    list.querySelectorAll('input').forEach(box => { box.checked = false; });
    draw();
  }

  function show(told) {
    answer = told;
    picture.src = told.before;
    picture.alt = 'The face as it is';
    after.show(told.after, chosen.length ? `The face with ${chosen.length} channels times ${times.value}` : 'The face, not changed yet');
    table.hidden = !told.steps;
    judged(table, told);
    again.command = told.command ?? '';
    latent.hidden = !told.face;
  }

  function changed(given, src) {
    face = given;
    picture.src = src;
    place ??= {x: 0.5, y: 0.7};  // about where a mouth is
    go(place.x, place.y);
    draw();
  }

  return {
    favourites: picker.favourites,
    take(given) { fresh = false; picker.take(given); },
    model() { face = null; chosen = []; found = null; fresh = true; layer.replaceChildren(); again.command = ''; picker.favourites(); },
    shown() {
      if (!shared.about) return error('Choose a model first: above, or on the Generate tab.');
      if (fresh) { fresh = false; error(''); picker.start(); }
    },
  };
}
