// Faces by number, the same in the browser as in Python (mien.models.latents): numpy's PCG64 and SeedSequence in whole numbers,
// then the inverse of the normal distribution.

const MASK64 = (1n << 64n) - 1n, MASK128 = (1n << 128n) - 1n;
const MULTIPLIER = (2549297995355413924n << 64n) | 4865540595714422341n; // of PCG64's linear congruential generator (O'Neill 2014)

// numpy.random.SeedSequence (after O'Neill's seed_seq_fe): words of 32 bits in, a pool of four, as many words as wanted out.
const xorshift = value => (value ^ (value >>> 16)) >>> 0;
const mixed = (x, y) => xorshift(Math.imul(0xca01f9dd, x) - Math.imul(0x4973f715, y));

function hasher(constant, multiplier) {
  return value => {
    value ^= constant;
    constant = Math.imul(constant, multiplier);
    return xorshift(Math.imul(value, constant));
  };
}

function words(number) {
  const found = [];
  for (let rest = BigInt(number); rest > 0n || !found.length; rest >>= 32n) found.push(Number(rest & 0xffffffffn));
  return found;
}

function seedWords(entropy, count) {
  const hash = hasher(0x43b0d7e5, 0x931e8875), pool = [];
  for (let i = 0; i < 4; i++) pool.push(hash(entropy[i] ?? 0));
  for (let from = 0; from < 4; from++) for (let to = 0; to < 4; to++) if (from !== to) pool[to] = mixed(pool[to], hash(pool[from]));
  for (let from = 4; from < entropy.length; from++) for (let to = 0; to < 4; to++) pool[to] = mixed(pool[to], hash(entropy[from]));
  const draw = hasher(0x8b51f9dd, 0x58f38ded);
  return Array.from({length: count}, (_, i) => draw(pool[i % 4]));
}

// `count` numbers of 64 bits (BigInt) of numpy.random.PCG64([seed, stream]).
export function rawNumbers(seed, stream, count) {
  const w = seedWords([...words(seed), ...words(stream)], 8).map(BigInt);
  const [a, b, c, d] = [0, 2, 4, 6].map(i => w[i] | (w[i + 1] << 32n));
  const increment = ((((c << 64n) | d) << 1n) | 1n) & MASK128;
  const step = state => (state * MULTIPLIER + increment) & MASK128;
  let state = step((step(0n) + ((a << 64n) | b)) & MASK128);
  return Array.from({length: count}, () => {
    state = step(state);
    const folded = (state >> 64n) ^ (state & MASK64), turn = state >> 122n; // XSL-RR
    return ((folded >> turn) | (folded << (64n - turn))) & MASK64;
  });
}

export const uniforms = (seed, count, stream = 0) => rawNumbers(seed, stream, count).map(raw => (Number(raw >> 11n) + 0.5) * 2 ** -53);

// The normal distribution's inverse: Wichura 1988, "Algorithm AS 241: the percentage points of the normal distribution", PPND16.
const polynomial = (coefficients, x) => coefficients.reduceRight((sum, c) => sum * x + c, 0);
const MIDDLE = [
  [3.3871328727963666080, 133.14166789178437745, 1971.5909503065514427, 13731.693765509461125,
    45921.953931549871457, 67265.770927008700853, 33430.575583588128105, 2509.0809287301226727],
  [1, 42.313330701600911252, 687.18700749205790830, 5394.1960214247511077,
    21213.794301586595867, 39307.895800092710610, 28729.085735721942674, 5226.4952788528545610]];
const SIDES = [
  [1.42343711074968357734, 4.63033784615654529590, 5.76949722146069140550, 3.64784832476320460504,
    1.27045825245236838258, 0.241780725177450611770, 0.0227238449892691845833, 7.74545014278341407640e-4],
  [1, 2.05319162663775882187, 1.67638483018380384940, 0.689767334985100004550,
    0.148103976427480074590, 0.0151986665636164571966, 5.47593808499534494600e-4, 1.05075007164441684324e-9]];
const ENDS = [
  [6.65790464350110377720, 5.46378491116411436990, 1.78482653991729133580, 0.296560571828504891230,
    0.0265321895265761230930, 1.24266094738807843860e-3, 2.71155556874348757815e-5, 2.01033439929228813265e-7],
  [1, 0.599832206555887937690, 0.136929880922735805310, 0.0148753612908506148525,
    7.86869131145613259100e-4, 1.84631831751005468180e-5, 1.42151175831644588870e-7, 2.04426310338993978564e-15]];

export function normalInverse(p) {
  const ratio = ([top, bottom], x) => polynomial(top, x) / polynomial(bottom, x);
  const q = p - 0.5;
  if (Math.abs(q) <= 0.425) return q * ratio(MIDDLE, 0.180625 - q * q);
  const r = Math.sqrt(-Math.log(Math.min(p, 1 - p)));
  return Math.sign(q) * (r <= 5 ? ratio(SIDES, r - 1.6) : ratio(ENDS, r - 5));
}

// Float32Array [length]: the latent of face number `seed`.
export const latent = (seed, length) => Float32Array.from(uniforms(seed, length), normalInverse);

// The attributes that `mien sample` draws for face number `seed`: a row of the table [[row, share], ...], as often as its share.
export function drawnAttributes(seed, table) {
  const rows = table.filter(([, share]) => share > 0), total = rows.reduce((sum, [, share]) => sum + share, 0);
  const u = uniforms(seed, 1, 1)[0];
  let upTo = 0;
  for (const [row, share] of rows) {
    upTo += share / total;
    if (u < upTo) return row;
  }
  return rows[rows.length - 1][0];
}

// The great arc from a to b (Shoemake 1985), the norm going evenly from one's to the other's; as `mien interpolate` goes.
export function slerp(a, b, t) {
  if (t === 0) return a;
  if (t === 1) return b;
  const dot = (x, y) => x.reduce((sum, value, i) => sum + value * y[i], 0);
  const x = Float64Array.from(a), y = Float64Array.from(b), nx = Math.sqrt(dot(x, x)), ny = Math.sqrt(dot(y, y));
  const cosine = dot(x, y) / (nx * ny), across = y.map((value, i) => value / ny - cosine * x[i] / nx), sine = Math.sqrt(dot(across, across));
  if (sine < 1e-9) return Float32Array.from(x, (value, i) => value + t * (y[i] - value));
  const angle = t * Math.atan2(sine, cosine), norm = (1 - t) * nx + t * ny;
  return Float32Array.from(x, (value, i) => norm * (Math.cos(angle) * value / nx + Math.sin(angle) * across[i] / sine));
}
