// Which face: by number, of those kept, or a photo that is looked for in the model's latents.

import {Superseded, ask, button, el, field, freshId} from './common.js';
import {inWords} from './generate.js';

// changed(face) is called with {seed, attributes, truncation} or {photo, attributes}, and a picture's address.
export function facePicker(shared, panel, changed, fail, {photos = false} = {}) {
  const seed = el('input', {type: 'number', min: 0, step: 1, value: 0, inputMode: 'numeric', onchange: () => byNumber(seed.valueAsNumber)});
  const kept = el('div.strip.row', {role: 'group', 'aria-label': 'Kept faces'});
  const file = el('input.unseen', {type: 'file', accept: 'image/*', id: freshId(), onchange: () => file.files[0] && photo(file.files[0])});
  const crop = el('select', {}, [['auto', 'find the face'], ['square', 'middle square'], ['whole', 'whole picture']].map(([value, text]) => el('option', {value}, text)));
  const camera = button('Camera', film);
  const told = el('p.soft', {role: 'status'});
  const upload = photos && el('fieldset', {}, el('legend', {}, 'Or a photo'), el('div.row', {}, file, el('label.button', {htmlFor: file.id}, 'Choose a photo'), camera),
    field('Crop', crop), told);
  const node = el('div', {}, field('Face number', seed), el('div.row', {}, button('Next', () => byNumber((seed.valueAsNumber || 0) + 1), {'aria-label': 'Next face'}), button('Random', () => byNumber(Math.floor(Math.random() * 1e6)))), kept, upload);
  let turn = 0;

  async function byNumber(number) {
    if (!shared.about || Number.isNaN(number)) return;
    seed.value = number;
    const mine = ++turn;
    try {
      const {faces} = await ask('generate', {model: shared.about.model, seed: number, count: 1, where: {}, truncation: 1}, {panel: `${panel}-face`});
      if (mine !== turn) return;
      fail('');
      changed({seed: number, attributes: faces[0].attributes, truncation: 1}, faces[0].png);
    } catch (error) { if (!(error instanceof Superseded)) fail(error.message); }
  }

  function take({seed: number, attributes, truncation, png}) {
    turn++;
    seed.value = number;
    changed({seed: number, attributes, truncation}, png);
  }

  async function photo(blob) {
    const mine = ++turn, {model} = shared.about ?? {};
    if (!model) return fail('Choose a model first.');
    if (blob.size > 20e6) return fail('That file is larger than 20 MB: give a smaller picture.');
    fail('');
    told.textContent = 'Reading the photo …';
    try {
      const read = await ask(`photo?${new URLSearchParams({model, crop: crop.value})}`, blob, {panel: `${panel}-face`});
      if (mine !== turn) return;
      told.textContent = 'Finding it in the model: this takes some seconds …';
      changed(null, read.png);
      const found = await ask('invert', {model, photo: read.photo}, {panel: `${panel}-face`});
      if (mine !== turn) return;
      const alike = found.identity === null ? '' : found.identity < 0.3 ? ' It looks much like the person.' : found.identity < 0.6 ? ' It looks somewhat like the person.' : ' It does not look much like the person: this model cannot draw them.';
      told.textContent = `Found, off by ${Math.round(found.rmse)} of 255 levels.${alike}`;
      changed({photo: read.photo, attributes: found.attributes}, found.png);
    } catch (error) {
      if (mine === turn && !(error instanceof Superseded)) { told.textContent = ''; fail(error.message); }
    }
    file.value = '';
  }

  async function film() {
    if (!navigator.mediaDevices?.getUserMedia) return fail('The browser lets a page use the camera only on this machine (127.0.0.1) or over https.');
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({video: true});
    } catch { return fail('The camera could not be used: is there one, and did you allow it?'); }
    const video = el('video', {autoplay: true, muted: true, playsInline: true, srcObject: stream, 'aria-label': 'What the camera sees'});
    const done = () => { stream.getTracks().forEach(track => track.stop()); dialog.remove(); };
    const shoot = () => {
      const canvas = el('canvas', {width: video.videoWidth, height: video.videoHeight});
      canvas.getContext('2d').drawImage(video, 0, 0);
      done();
      canvas.toBlob(blob => photo(blob), 'image/png');
    };
    const dialog = el('dialog', {'aria-label': 'Camera', onclose: done}, video, el('div.row', {}, button('Take the picture', shoot, {className: 'primary'}), button('Cancel', () => dialog.close())));
    document.body.append(dialog);
    dialog.showModal();
  }

  function favourites() {
    kept.replaceChildren(...shared.favourites.slice(-8).map(face => el('button.face', {type: 'button', onclick: () => take(face)}, el('img', {src: face.png, alt: `Kept: ${inWords(face)}`}))));
    kept.hidden = !shared.favourites.length;
  }

  favourites();
  return {node, take, favourites, byNumber, start: () => byNumber(seed.valueAsNumber || 0)};
}

// What the judge sees of a change, as a table.
export function judged(node, {seen, identity}) {
  if (!seen) { node.replaceChildren(); return; }
  const share = value => `${Math.round(100 * value)}%`;
  node.replaceChildren(el('h3', {}, 'What the judge sees'), seen.length ? el('table', {}, el('thead', {}, el('tr', {}, ['Attribute', 'before', 'after'].map(text => el('th', {scope: 'col'}, text)))),
    el('tbody', {}, seen.map(row => el('tr', {}, el('th', {scope: 'row'}, row.name.replaceAll('_', ' ')), el('td', {}, share(row.before)), el('td', {}, share(row.after)))))) : el('p.soft', {}, 'No change of any attribute.'),
    el('p.soft', {}, `Likeness of the faces: ${identity.toFixed(2)} (1 is the same).`));
}
