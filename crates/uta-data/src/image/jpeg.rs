//! Baseline JPEGs, decoded no further than a crop needs: rows below it are not read, blocks outside of it are stepped over,
//! and a picture much larger than its use can be decoded at a half, a quarter or an eighth of its size.
//!
//! Written by hand, because no crate decodes a part: libjpeg-turbo can, but is fast only with an assembler installed, and
//! wants `unsafe`. What is decoded has libjpeg-turbo's very bytes, and so Pillow's: its accurate inverse transform
//! (jidctint.c), its smaller ones (jidctred.c), its smooth upsampling (jdsample.c) and its colours (jdcolor.c).
//!
//! Not read here, and left to [`crate::image::scans`], which decodes whole pictures only: progressive and CMYK files, RGB ones, those of
//! several scans, chroma of an unusual shape or at most two samples wide, and whatever is damaged, for its error.

use std::array::from_fn;
use std::cell::RefCell;
use std::num::Wrapping;

use memchr::memchr;
use pulp::{Arch, NullaryFnOnce};

use crate::image::crop::CropBox;

/// Side of a block.
pub(crate) const BLOCK: usize = 8;

/// The place in a block, row by row, of each coefficient in the order of the file; those beyond the last fall into a place
/// behind the block.
pub(crate) const ZIGZAG: [u8; 128] = {
    let mut order = [64; 128];
    let (mut row, mut column, mut i) = (0usize, 0usize, 0);
    while i < 64 {
        order[i] = (row * BLOCK + column) as u8;
        if (row + column).is_multiple_of(2) {
            match (row, column) {
                (_, 7) => row += 1,
                (0, _) => column += 1,
                _ => (row, column) = (row - 1, column + 1),
            }
        } else {
            match (row, column) {
                (7, _) => column += 1,
                (_, 0) => row += 1,
                _ => (row, column) = (row + 1, column - 1),
            }
        }
        i += 1;
    }
    order
};

/// Coefficients row by row, and a place for those of damaged data that lie beyond the last.
pub(crate) type Block = [i16; 65];

/// The header of a JPEG that can be decoded in part.
pub(crate) struct Jpeg<'a> {
    /// Columns of the whole picture.
    pub(crate) width: u32,
    /// Rows of the whole picture.
    pub(crate) height: u32,
    /// One (gray) or three (luma and chroma).
    components: Vec<Component>,
    quantisation: [Option<[u16; 64]>; 4],
    dc: [Option<Box<Huffman>>; 4],
    ac: [Option<Box<Huffman>>; 4],
    /// MCUs between restart markers; 0 for none.
    restart: usize,
    /// The coded data and what follows.
    scan: &'a [u8],
}

#[derive(Clone, Copy)]
struct Component {
    id: u8,
    /// Blocks of an MCU, across and down.
    h: usize,
    v: usize,
    quantisation: usize,
    dc: usize,
    ac: usize,
}

/// Bits that the tables of codes are looked up by.
const PEEK: u32 = 10;

/// Codes of up to [`PEEK`] bits in one step; longer ones by counting up.
pub(crate) struct Huffman {
    /// By the next bits, whatever follows the code.
    fast: [Entry; 1 << PEEK],
    /// By the same bits: a symbol alone and the bits of its code, 0 for a longer one.
    short: [(u8, u8); 1 << PEEK],
    /// By length 1 to 16: the first code beyond those of that length, in the upper 16 of 17 bits; the last is a stop.
    beyond: [u32; 18],
    /// Offset from a code of a length to its place among the symbols.
    offset: [i32; 17],
    symbols: Vec<u8>,
}

/// Value of a code and the number behind it, in one word; 0 for a code longer than [`PEEK`].
#[derive(Clone, Copy, Default)]
struct Entry(u32);

impl Entry {
    /// Entry of a symbol: the number's size in the lower half, the zeros before it in the upper one. `value` is that of a number
    /// that lies within the bits looked at.
    fn new(symbol: u8, code_bits: u32, value: Option<i16>) -> Entry {
        let (run, size) = (u32::from(symbol >> 4), u32::from(symbol & 15));
        // (15, 0) is a run of 16 zeros; any other run without a number ends the block.
        let step = if size > 0 || run == 15 { run + 1 } else { 64 };
        let left = if value.is_some() { 0 } else { size };
        let value = u32::from(value.unwrap_or(0) as u16);
        Entry(value << 16 | step << 9 | (code_bits + size) << 4 | left)
    }

    /// Value of the number, where `left` is 0.
    #[inline(always)]
    fn value(self) -> i16 {
        (self.0 >> 16) as i16
    }

    /// AC: places to go on by, 64 for the end of the block. DC: of no meaning.
    #[inline(always)]
    fn step(self) -> u32 {
        self.0 >> 9 & 127
    }

    /// Bits of code and number.
    #[inline(always)]
    fn bits(self) -> u32 {
        self.0 >> 4 & 31
    }

    /// Bits of a number that is yet to be read.
    #[inline(always)]
    fn left(self) -> u32 {
        self.0 & 15
    }
}

impl Huffman {
    /// Reads a DHT segment's tables into those of DC and AC coefficients. None where it is damaged.
    pub(crate) fn read(
        mut segment: &[u8],
        dc: &mut [Option<Box<Huffman>>; 4],
        ac: &mut [Option<Box<Huffman>>; 4],
    ) -> Option<()> {
        while let Some((&head, rest)) = segment.split_first() {
            let (counts, rest) = rest.split_first_chunk::<16>()?;
            let symbols = rest.get(..counts.iter().map(|&c| usize::from(c)).sum())?;
            let table = Some(Box::new(Huffman::new(counts, symbols)?));
            let tables = if head >> 4 == 0 { &mut *dc } else { &mut *ac };
            *tables.get_mut(usize::from(head & 15))? = table;
            segment = &rest[symbols.len()..];
        }
        Some(())
    }

    /// From a DHT segment's counts by length, and its symbols. None where the counts are impossible.
    fn new(counts: &[u8; 16], symbols: &[u8]) -> Option<Huffman> {
        let mut table = Huffman {
            fast: [Entry::default(); 1 << PEEK],
            short: [(0, 0); 1 << PEEK],
            beyond: [0; 18],
            offset: [0; 17],
            symbols: symbols.to_vec(),
        };
        let (mut code, mut at) = (0u32, 0usize);
        for bits in 1..=16u32 {
            let count = u32::from(counts[bits as usize - 1]);
            table.offset[bits as usize] = at as i32 - code as i32;
            if code + count > 1 << bits {
                return None;
            }
            for _ in 0..count {
                if bits <= PEEK {
                    table.fill(code, bits, symbols[at]);
                }
                (code, at) = (code + 1, at + 1);
            }
            table.beyond[bits as usize] = code << (16 - bits);
            code <<= 1;
        }
        table.beyond[17] = u32::MAX;
        Some(table)
    }

    /// All that the bits looked at can be when they begin with a code.
    fn fill(&mut self, code: u32, bits: u32, symbol: u8) {
        let free = PEEK - bits;
        let size = u32::from(symbol & 15);
        for rest in 0..1u32 << free {
            let value = (size <= free).then(|| extend(rest >> (free - size), size));
            self.short[(code << free | rest) as usize] = (symbol, bits as u8);
            self.fast[(code << free | rest) as usize] = Entry::new(symbol, bits, value);
        }
    }

    /// The entry of a code longer than [`PEEK`], from the next 16 bits; of no bits where there is none.
    #[cold]
    fn slow(&self, peek: u32) -> Entry {
        let Some(bits) = (PEEK + 1..=16).find(|&bits| peek < self.beyond[bits as usize]) else {
            return Entry::default();
        };
        let at = (peek >> (16 - bits)) as i32 + self.offset[bits as usize];
        self.symbols.get(at as usize).map_or(Entry::default(), |&s| Entry::new(s, bits, None))
    }
}

/// The number that `size` bits mean: those that begin with 0 are negative.
#[inline(always)]
pub(crate) fn extend(number: u32, size: u32) -> i16 {
    let low = (1u32 << size) >> 1;
    let negative = if number < low { (1i32 << size) - 1 } else { 0 };
    (number as i32 - negative) as i16
}

/// Buffers, kept from one picture to the next.
#[derive(Default)]
struct Scratch {
    /// The coded data without stuffing and markers, and zeros behind.
    coded: Vec<u8>,
    /// Where the intervals between restart markers end in it.
    ends: Vec<usize>,
    planes: [Vec<u8>; 3],
    /// Rows of the crop: two of upsampled chroma.
    rows: [Vec<u8>; 2],
}

/// The part of a component that is wanted, in its own samples.
#[derive(Clone, Copy, Default)]
struct Window {
    /// Side of a block after the inverse transform: 8, 4, 2 or 1.
    side: usize,
    /// Blocks: first, and one beyond the last.
    columns: (usize, usize),
    rows: (usize, usize),
    /// Samples of the whole component, at that size.
    width: usize,
    height: usize,
    /// Luma samples for one of these, across and down: 1 or 2.
    across: usize,
    down: usize,
}

impl Window {
    fn stride(&self) -> usize {
        (self.columns.1 - self.columns.0) * self.side
    }
}

/// [`Jpeg::decode`]. Its arithmetic is plain; as this it is compiled for the widest registers the machine may have.
struct Decode<'a> {
    jpeg: &'a Jpeg<'a>,
    crop: CropBox,
    shrink: u32,
    scratch: &'a mut Scratch,
    rgb: &'a mut Vec<u8>,
}

impl NullaryFnOnce for Decode<'_> {
    type Output = Option<()>;

    #[inline(always)]
    fn call(self) -> Option<()> {
        let Decode { jpeg, crop, shrink, scratch, rgb } = self;
        let windows = jpeg.windows(crop, shrink);
        let rest = unstuff(jpeg.scan, &mut scratch.coded, &mut scratch.ends)?;
        // Any other marker than the end of the image may mean another scan.
        rest.starts_with(&[0xff, 0xd9]).then_some(())?;
        jpeg.planes(&windows, scratch)?;
        jpeg.colours(&windows, crop, scratch, rgb);
        Some(())
    }
}

impl<'a> Jpeg<'a> {
    /// Reads a header. None for what isn't decoded here.
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Jpeg<'a>> {
        let mut rest = bytes.strip_prefix(&[0xff, 0xd8])?;
        let mut jpeg = Jpeg {
            width: 0,
            height: 0,
            components: vec![],
            quantisation: [None; 4],
            dc: [const { None }; 4],
            ac: [const { None }; 4],
            restart: 0,
            scan: &[],
        };
        let (mut jfif, mut adobe) = (false, None);
        loop {
            rest = rest.strip_prefix(&[0xff])?;
            let (&code, after) = rest.split_first()?;
            if code == 0xff {
                continue;
            }
            let length = usize::from(be16(after, 0)?);
            let segment = after.get(2..length)?;
            rest = after.get(length..)?;
            match code {
                0xc0 | 0xc1 => jpeg.frame(segment)?,
                0xc4 => Huffman::read(segment, &mut jpeg.dc, &mut jpeg.ac)?,
                0xdb => Quantised::read(segment, &mut jpeg.quantisation)?,
                0xdd => jpeg.restart = be16(segment, 0)?.into(),
                0xe0 => jfif |= segment.starts_with(b"JFIF\0") && segment.len() >= 14,
                0xee if segment.starts_with(b"Adobe") && segment.len() >= 12 => {
                    adobe = segment.get(11).copied();
                }
                0xda => {
                    jpeg.start(segment)?;
                    jpeg.scan = rest;
                    let ids = jpeg.components.iter().map(|c| c.id);
                    let rgb = !jfif && (adobe == Some(0) || adobe.is_none() && ids.eq(*b"RGB"));
                    return (!rgb || jpeg.components.len() == 1).then_some(jpeg);
                }
                0xe1..=0xef | 0xfe => {}
                _ => return None,
            }
        }
    }

    fn frame(&mut self, segment: &[u8]) -> Option<()> {
        let (&[8, .., count], rest) = segment.split_first_chunk::<6>()? else { return None };
        (self.height, self.width) = (be16(segment, 1)?.into(), be16(segment, 3)?.into());
        let (parts, &[]) = rest.as_chunks::<3>() else { return None };
        let fits = self.components.is_empty() && [1, 3].contains(&parts.len());
        if !fits || parts.len() != usize::from(count) || self.width == 0 || self.height == 0 {
            return None;
        }
        self.components = parts
            .iter()
            .map(|&[id, hv, q]| {
                let (h, v) = (usize::from(hv >> 4), usize::from(hv & 15));
                let known = (1..=2).contains(&h) && (1..=2).contains(&v) && q < 4;
                known.then_some(Component { id, h, v, quantisation: q.into(), dc: 0, ac: 0 })
            })
            .collect::<Option<_>>()?;
        match self.components.as_mut_slice() {
            // A scan of one component goes block by block, whatever its sampling.
            [gray] => (gray.h, gray.v) = (1, 1),
            [_, chroma @ ..] if chroma.iter().any(|c| (c.h, c.v) != (1, 1)) => return None,
            _ => {}
        }
        Some(())
    }

    fn start(&mut self, segment: &[u8]) -> Option<()> {
        let (&count, rest) = segment.split_first()?;
        let count = usize::from(count);
        // Behind the components are three bytes that matter to progressive files only.
        if count != self.components.len() || rest.len() != 2 * count + 3 {
            return None;
        }
        for (component, &[id, tables]) in self.components.iter_mut().zip(rest.as_chunks::<2>().0) {
            (component.dc, component.ac) = ((tables >> 4).into(), (tables & 15).into());
            let coded =
                self.dc.get(component.dc)?.is_some() && self.ac.get(component.ac)?.is_some();
            if component.id != id || !coded || self.quantisation[component.quantisation].is_none() {
                return None;
            }
        }
        (count > 0).then_some(())
    }

    /// Components with the most samples have these, in blocks of an MCU.
    fn most(&self) -> (usize, usize) {
        self.components.first().map_or((1, 1), |c| (c.h, c.v))
    }

    /// The largest of 8, 4, 2 and 1 by which the picture may be divided so that `crop` is still `size` wide and high.
    pub(crate) fn shrink(&self, crop: CropBox, size: u32) -> u32 {
        let least = crop.width.min(crop.height);
        let (h, v) = self.most();
        // At an eighth there is no smooth upsampling, so there must be nothing to upsample.
        let most = if h == v { 8 } else { 4 };
        [8, 4, 2].into_iter().find(|&s| s <= most && least >= s * size).unwrap_or(1)
    }

    /// The size of the picture at 1 / `shrink`.
    pub(crate) fn size(&self, shrink: u32) -> (u32, u32) {
        (self.width.div_ceil(shrink), self.height.div_ceil(shrink))
    }

    /// The part `crop` of the picture at 1 / `shrink` (1, 2, 4 or 8), into `rgb`: `[crop.height, crop.width, 3]` bytes.
    /// `None` where the data is damaged, cut short, or not coded in a single scan.
    pub(crate) fn decode(&self, crop: CropBox, shrink: u32, rgb: &mut Vec<u8>) -> Option<()> {
        thread_local! {
            static SCRATCH: RefCell<Scratch> = RefCell::default();
        }
        let (width, height) = self.size(shrink);
        let inside = crop.width > 0
            && crop.height > 0
            && u64::from(crop.left) + u64::from(crop.width) <= width.into()
            && u64::from(crop.top) + u64::from(crop.height) <= height.into();
        // Chroma of one or two columns isn't upsampled smoothly.
        if !inside || width <= 4 {
            return None;
        }
        SCRATCH.with_borrow_mut(|scratch| {
            Arch::new().dispatch(Decode { jpeg: self, crop, shrink, scratch, rgb })
        })
    }

    /// Blocks of each component that a crop needs.
    fn windows(&self, crop: CropBox, shrink: u32) -> [Window; 3] {
        let (most_h, most_v) = self.most();
        let side = BLOCK / shrink as usize;
        let mut windows = [Window::default(); 3];
        for (window, c) in windows.iter_mut().zip(&self.components) {
            // Chroma is decoded at a larger size, rather than upsampled, where it can be.
            let mut s = side;
            while s < BLOCK && most_h * side >= 2 * s * c.h && most_v * side >= 2 * s * c.v {
                s *= 2;
            }
            let (across, down) = (most_h * side / (c.h * s), most_v * side / (c.v * s));
            let samples = |whole: u32, part: usize, most: usize| {
                (whole as usize * part * s).div_ceil(most * BLOCK)
            };
            let (width, height) =
                (samples(self.width, c.h, most_h), samples(self.height, c.v, most_v));
            // Smooth upsampling looks one sample beyond.
            let range = |start: u32, length: u32, every: usize, whole: usize| {
                let (start, end) = (start as usize, (start + length) as usize);
                let margin = every - 1;
                let first = (start / every).saturating_sub(margin) / s;
                (first, ((end - 1) / every + 1 + margin).min(whole).div_ceil(s))
            };
            *window = Window {
                side: s,
                columns: range(crop.left, crop.width, across, width),
                rows: range(crop.top, crop.height, down, height),
                width,
                height,
                across,
                down,
            };
        }
        windows
    }

    /// Decodes the blocks of the windows.
    #[inline(always)]
    fn planes(&self, windows: &[Window; 3], scratch: &mut Scratch) -> Option<()> {
        let Scratch { coded, ends, planes, .. } = scratch;
        let (most_h, most_v) = self.most();
        let across = (self.width as usize).div_ceil(BLOCK * most_h);
        let down = (self.height as usize).div_ceil(BLOCK * most_v);
        let mut last = 0;
        let mut parts = vec![];
        for ((c, window), plane) in self.components.iter().zip(windows).zip(planes) {
            let samples = window.stride() * (window.rows.1 - window.rows.0) * window.side;
            // What is there already is overwritten.
            plane.resize(samples, 0);
            last = last.max((window.rows.1 - 1) / c.v);
            let quantisation = self.quantisation[c.quantisation].as_ref()?;
            parts.push((
                *c,
                *window,
                plane,
                Quantised::new(quantisation),
                self.dc[c.dc].as_deref()?,
                self.ac[c.ac].as_deref()?,
            ));
        }
        let mut bits = Bits::new(coded, 0);
        let mut before = [0i16; 3];
        let (mut interval, mut left) =
            (0, if self.restart > 0 { self.restart } else { usize::MAX });
        for my in 0..=last.min(down - 1) {
            for mx in 0..across {
                if left == 0 {
                    if bits.position() > *ends.get(interval)? {
                        return None;
                    }
                    bits = Bits::new(coded, *ends.get(interval)?);
                    before = [0; 3];
                    (interval, left) = (interval + 1, self.restart);
                }
                left -= 1;
                for ((c, window, plane, quantised, dc, ac), before) in
                    parts.iter_mut().zip(&mut before)
                {
                    for y in 0..c.v {
                        let row = my * c.v + y;
                        let wanted = window.rows.0 <= row && row < window.rows.1;
                        for x in 0..c.h {
                            let column = mx * c.h + x;
                            let value = before.wrapping_add(bits.difference(dc)?);
                            *before = value;
                            if !wanted || column < window.columns.0 || column >= window.columns.1 {
                                bits.skip_block(ac)?;
                                continue;
                            }
                            let stride = window.stride();
                            let at = ((row - window.rows.0) * stride + column - window.columns.0)
                                * window.side;
                            let out = plane.get_mut(at..)?;
                            let (block, count) = bits.block(ac, quantised, value)?;
                            match window.side {
                                _ if count == 1 => flat(block[0], window.side, out, stride),
                                8 => inverse_8(&block, out, stride),
                                4 => inverse_4(&block, out, stride),
                                2 => inverse_2(&block, out, stride),
                                _ => flat(block[0], 1, out, stride),
                            }
                        }
                    }
                }
            }
            // More was read than was there.
            if bits.position() > *ends.get(interval)? {
                return None;
            }
        }
        Some(())
    }

    /// Upsamples and converts the rows of the crop.
    #[inline(always)]
    fn colours(&self, windows: &[Window; 3], crop: CropBox, s: &mut Scratch, rgb: &mut Vec<u8>) {
        let (width, height) = (crop.width as usize, crop.height as usize);
        let (left, top) = (crop.left as usize, crop.top as usize);
        // What is there already is overwritten.
        rgb.resize(3 * width * height, 0);
        let [luma, chroma, _] = windows;
        let luma_row = |y: usize| {
            let start = (top + y - luma.rows.0 * luma.side) * luma.stride() + left
                - luma.columns.0 * luma.side;
            &s.planes[0][start..start + width]
        };
        let rows = rgb.chunks_exact_mut(3 * width).enumerate();
        if self.components.len() == 1 {
            for (y, row) in rows {
                let (pixels, _) = row.as_chunks_mut::<3>();
                pixels.iter_mut().zip(luma_row(y)).for_each(|(pixel, &y)| *pixel = [y; 3]);
            }
            return;
        }
        let first = chroma.columns.0 * chroma.side;
        for row in &mut s.rows {
            row.resize(width + 2, 0);
        }
        for (y, row) in rows {
            let at = top + y;
            for (plane, out) in s.planes[1..].iter().zip(&mut s.rows) {
                let row_of = |y: usize| {
                    let start = (y - chroma.rows.0 * chroma.side) * chroma.stride();
                    let end = chroma.width.min(chroma.columns.1 * chroma.side) - first;
                    &plane[start..start + end]
                };
                // The nearer row counts three times the farther one; beyond the edge the last one is repeated.
                let (near, far) = match (chroma.down, at % 2) {
                    (1, _) => (at, at),
                    (_, 0) => (at / 2, (at / 2).saturating_sub(1)),
                    _ => (at / 2, (at / 2 + 1).min(chroma.height - 1)),
                };
                let (near, far) = (row_of(near), row_of(far));
                match (chroma.across, chroma.down) {
                    (1, 1) => out[..width].copy_from_slice(&near[left - first..][..width]),
                    (1, _) => {
                        let bias = if at.is_multiple_of(2) { 1 } else { 2 };
                        let (near, far) = (&near[left - first..], &far[left - first..]);
                        for ((out, &n), &f) in out[..width].iter_mut().zip(near).zip(far) {
                            *out = ((3 * u16::from(n) + u16::from(f) + bias) >> 2) as u8;
                        }
                    }
                    _ => {
                        // An even number of columns, from an even one on.
                        let from = left / 2;
                        let count = (left + width).div_ceil(2) - from;
                        let both = chroma.down > 1;
                        widen(near, far, both, from - first, count, out);
                        if left % 2 == 1 {
                            out.copy_within(1..=width, 0);
                        }
                    }
                }
            }
            let (cb, cr) = s.rows.split_at(1);
            to_rgb(luma_row(y), &cb[0][..width], &cr[0][..width], row);
        }
    }
}

pub(crate) fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2).map(|b| u16::from_be_bytes([b[0], b[1]]))
}

/// Copies coded data without stuffing, up to a marker that is no restart marker, and returns what begins with that. None where
/// it is missing, or restart markers are out of order.
pub(crate) fn unstuff<'a>(
    scan: &'a [u8],
    coded: &mut Vec<u8>,
    ends: &mut Vec<usize>,
) -> Option<&'a [u8]> {
    coded.clear();
    ends.clear();
    let mut rest = scan;
    loop {
        let at = memchr(0xff, rest)?;
        let next = *rest.get(at + 1)?;
        match next {
            // Stuffing: the byte is meant, its 0 isn't.
            0 => coded.extend_from_slice(&rest[..=at]),
            // Fill.
            0xff => {
                coded.extend_from_slice(&rest[..at]);
                rest = &rest[at + 1..];
                continue;
            }
            _ => {
                coded.extend_from_slice(&rest[..at]);
                ends.push(coded.len());
                if !(0xd0..=0xd7).contains(&next) {
                    // So that eight bytes can be read from anywhere.
                    coded.extend_from_slice(&[0; 16]);
                    return Some(&rest[at..]);
                }
                if usize::from(next - 0xd0) != (ends.len() - 1) % 8 {
                    return None;
                }
            }
        }
        rest = &rest[at + 2..];
    }
}

/// Reads coded data from the highest bit on.
pub(crate) struct Bits<'a> {
    coded: &'a [u8],
    /// The next byte to take in.
    next: usize,
    /// Bits taken in, at the top; below them may be more, which are taken in again.
    held: u64,
    count: u32,
}

impl Bits<'_> {
    #[inline(always)]
    pub(crate) fn new(coded: &[u8], next: usize) -> Bits<'_> {
        Bits { coded, next, held: 0, count: 0 }
    }

    /// Bytes begun.
    pub(crate) fn position(&self) -> usize {
        self.next - (self.count / 8) as usize
    }

    /// At least 56 bits are held then. None far beyond the end.
    #[inline(always)]
    fn refill(&mut self) -> Option<()> {
        if self.count < 32 {
            let word = self.coded.get(self.next..self.next + 8)?.first_chunk::<8>()?;
            self.held |= u64::from_be_bytes(*word) >> self.count;
            let bytes = (63 - self.count) >> 3;
            self.next += bytes as usize;
            self.count += 8 * bytes;
        }
        Some(())
    }

    #[inline(always)]
    fn take(&mut self, bits: u32) {
        self.held <<= bits;
        self.count -= bits;
    }

    /// The entry for what comes next, where at least 31 bits are held.
    #[inline(always)]
    fn entry(&self, table: &Huffman) -> Option<Entry> {
        let entry = table.fast[(self.held >> (64 - PEEK)) as usize];
        if entry.0 > 0 {
            return Some(entry);
        }
        let entry = table.slow((self.held >> 48) as u32);
        (entry.0 > 0).then_some(entry)
    }

    /// The symbol of the next code.
    #[inline(always)]
    pub(crate) fn symbol(&mut self, table: &Huffman) -> Option<u8> {
        self.refill()?;
        let (symbol, bits) = table.short[(self.held >> (64 - PEEK)) as usize];
        if bits > 0 {
            self.take(bits.into());
            return Some(symbol);
        }
        let peek = (self.held >> 48) as u32;
        let bits = (PEEK + 1..=16).find(|&bits| peek < table.beyond[bits as usize])?;
        let at = (peek >> (16 - bits)) as i32 + table.offset[bits as usize];
        self.take(bits);
        table.symbols.get(at as usize).copied()
    }

    /// A number of at most 16 bits.
    #[inline(always)]
    pub(crate) fn number_of(&mut self, bits: u32) -> Option<u32> {
        if bits == 0 {
            return Some(0);
        }
        self.refill()?;
        let number = (self.held >> (64 - bits)) as u32;
        self.take(bits);
        Some(number)
    }

    /// Passes an entry over and returns its number.
    #[inline(always)]
    fn number(&mut self, entry: Entry) -> i16 {
        let left = entry.left();
        let value = match left {
            0 => entry.value(),
            _ => extend((self.held << (entry.bits() - left) >> (64 - left)) as u32, left),
        };
        self.take(entry.bits());
        value
    }

    /// A DC coefficient's difference from the one before.
    #[inline(always)]
    fn difference(&mut self, table: &Huffman) -> Option<i16> {
        self.refill()?;
        let entry = self.entry(table)?;
        Some(self.number(entry))
    }

    #[inline(always)]
    fn skip_block(&mut self, table: &Huffman) -> Option<()> {
        let mut k = 1;
        while k < 64 {
            self.refill()?;
            let entry = self.entry(table)?;
            self.take(entry.bits());
            if entry.step() == 64 {
                break;
            }
            k += entry.step();
        }
        (k <= 64).then_some(())
    }

    /// The coefficients of a block, multiplied out, and how many of them in the order of the file may not be 0.
    #[inline(always)]
    fn block(&mut self, table: &Huffman, quantised: &Quantised, dc: i16) -> Option<(Block, u32)> {
        let mut block = [0; 65];
        block[0] = dc.wrapping_mul(quantised.values[0]);
        let mut k = 1;
        while k < 64 {
            self.refill()?;
            let entry = self.entry(table)?;
            let value = self.number(entry);
            if entry.step() == 64 {
                break;
            }
            k += entry.step();
            let at = (k - 1) as usize & 127;
            block[usize::from(ZIGZAG[at]).min(64)] = value.wrapping_mul(quantised.values[at]);
        }
        (k <= 64).then_some((block, k))
    }
}

/// A quantisation table in the order of the file, and zeros behind.
pub(crate) struct Quantised {
    pub(crate) values: [i16; 128],
}

impl Quantised {
    /// Reads a DQT segment's tables. None where it is damaged.
    pub(crate) fn read(mut segment: &[u8], tables: &mut [Option<[u16; 64]>; 4]) -> Option<()> {
        while let Some((&head, rest)) = segment.split_first() {
            let wide = usize::from(head >> 4 != 0);
            let values = rest.get(..64 << wide)?;
            let value =
                |i: usize| if wide == 1 { be16(values, 2 * i) } else { Some(values[i].into()) };
            let mut table = [0; 64];
            for (i, entry) in table.iter_mut().enumerate() {
                *entry = value(i)?;
            }
            *tables.get_mut(usize::from(head & 15))? = Some(table);
            segment = &rest[64 << wide..];
        }
        Some(())
    }

    pub(crate) fn new(table: &[u16; 64]) -> Quantised {
        Quantised { values: from_fn(|i| table.get(i).map_or(0, |&q| q as i16)) }
    }
}

/// A block of nothing but a DC coefficient.
#[inline(always)]
fn flat(dc: i16, side: usize, out: &mut [u8], stride: usize) {
    let value = sample(descale(Wrapping(dc.into()), 3));
    for row in out.chunks_mut(stride).take(side) {
        row[..side].fill(value);
    }
}

/// To a byte, around 128.
#[inline(always)]
fn sample(value: Int) -> u8 {
    (value + Wrapping(128)).0.clamp(0, 255) as u8
}

/// Damaged data may overflow; that gives a wrong pixel and no more.
type Int = Wrapping<i32>;

/// Rounded and shifted.
#[inline(always)]
fn descale(sum: Int, shift: usize) -> Int {
    (sum + Wrapping(1 << (shift - 1))) >> shift
}

/// One pass of the accurate transform, over a row or a column (Loeffler, Ligtenberg and Moschytz, 1989).
#[inline(always)]
fn pass_8(x: [Int; 8], shift: usize) -> [Int; 8] {
    let times = |x: Int, factor: i32| x * Wrapping(factor);
    let z = times(x[2] + x[6], 4433);
    let (even_2, even_3) = (z - times(x[6], 15137), z + times(x[2], 6270));
    let (even_0, even_1) = ((x[0] + x[4]) << 13, (x[0] - x[4]) << 13);
    let even = [even_0 + even_3, even_1 + even_2, even_1 - even_2, even_0 - even_3];
    let z5 = times(x[1] + x[3] + x[5] + x[7], 9633);
    let (z1, z2) = (times(x[7] + x[1], -7373), times(x[5] + x[3], -20995));
    let (z3, z4) = (times(x[7] + x[3], -16069) + z5, times(x[5] + x[1], -3196) + z5);
    let odd = [
        times(x[1], 12299) + z1 + z4,
        times(x[3], 25172) + z2 + z3,
        times(x[5], 16819) + z2 + z4,
        times(x[7], 2446) + z1 + z3,
    ];
    from_fn(|i| match i {
        0..4 => descale(even[i] + odd[i], shift),
        _ => descale(even[7 - i] - odd[7 - i], shift),
    })
}

#[inline(always)]
pub(crate) fn inverse_8(block: &Block, out: &mut [u8], stride: usize) {
    // Indices: of what is transformed, then of eight such, side by side.
    let mut between = [[Wrapping(0); 8]; 8];
    for column in 0..8 {
        let done = pass_8(from_fn(|row| Wrapping(block[row * BLOCK + column].into())), 11);
        for row in 0..8 {
            between[row][column] = done[row];
        }
    }
    let between: [[Int; 8]; 8] = from_fn(|column| from_fn(|row| between[row][column]));
    let mut columns = [[0; 8]; 8];
    for row in 0..8 {
        let done = pass_8(from_fn(|column| between[column][row]), 18);
        for column in 0..8 {
            columns[column][row] = sample(done[column]);
        }
    }
    for (row, to) in out.chunks_mut(stride).take(8).enumerate() {
        to[..8].copy_from_slice(&from_fn::<u8, 8, _>(|column| columns[column][row]));
    }
}

/// One pass to a half of the size.
#[inline(always)]
fn pass_4(x: [Int; 8], shift: usize) -> [Int; 4] {
    let times = |x: Int, factor: i32| x * Wrapping(factor);
    let (even_0, even_2) = (x[0] << 14, times(x[2], 15137) - times(x[6], 6270));
    let odd_0 = times(x[1], 8697) - times(x[3], 17799) + times(x[5], 11893) - times(x[7], 1730);
    let odd_2 = times(x[1], 20995) + times(x[3], 7373) - times(x[5], 4926) - times(x[7], 4176);
    let (a, b) = (even_0 + even_2, even_0 - even_2);
    [a + odd_2, b + odd_0, b - odd_0, a - odd_2].map(|sum| descale(sum, shift))
}

#[inline(always)]
fn inverse_4(block: &Block, out: &mut [u8], stride: usize) {
    let columns: [[Int; 4]; 8] =
        from_fn(|c| pass_4(from_fn(|r| Wrapping(block[r * BLOCK + c].into())), 12));
    for (r, to) in out.chunks_mut(stride).take(4).enumerate() {
        to[..4].copy_from_slice(&pass_4(from_fn(|c| columns[c][r]), 19).map(sample));
    }
}

/// One pass to a quarter of the size.
#[inline(always)]
fn pass_2(x: [Int; 8], shift: usize) -> [Int; 2] {
    let times = |x: Int, factor: i32| x * Wrapping(factor);
    let odd = times(x[1], 29692) - times(x[3], 10426) + times(x[5], 6967) - times(x[7], 5906);
    [(x[0] << 15) + odd, (x[0] << 15) - odd].map(|sum| descale(sum, shift))
}

#[inline(always)]
fn inverse_2(block: &Block, out: &mut [u8], stride: usize) {
    let columns: [[Int; 2]; 8] =
        from_fn(|c| pass_2(from_fn(|r| Wrapping(block[r * BLOCK + c].into())), 13));
    for (r, to) in out.chunks_mut(stride).take(2).enumerate() {
        to[..2].copy_from_slice(&pass_2(from_fn(|c| columns[c][r]), 20).map(sample));
    }
}

/// Doubles the columns `from..from + count` of two rows that were blended 3 : 1 (`both`), or of the first alone.
#[inline(always)]
pub(crate) fn widen(
    near: &[u8],
    far: &[u8],
    both: bool,
    from: usize,
    count: usize,
    out: &mut [u8],
) {
    let last = near.len() - 1;
    let blend = |i: usize| {
        let n = u16::from(near[i]);
        if both { 3 * n + u16::from(far[i]) } else { n }
    };
    let (round, shift) = if both { ((8, 7), 4) } else { ((1, 2), 2) };
    let (pairs, _) = out.as_chunks_mut::<2>();
    let pair = |before: u16, here: u16, after: u16| {
        [
            ((3 * here + before + round.0) >> shift) as u8,
            ((3 * here + after + round.1) >> shift) as u8,
        ]
    };
    let edge = |i: usize| pair(blend(i.saturating_sub(1)), blend(i), blend((i + 1).min(last)));
    pairs[0] = edge(from);
    if count == 1 {
        return;
    }
    pairs[count - 1] = edge(from + count - 1);
    let pairs = &mut pairs[1..count - 1];
    let near = near[from..from + count].windows(3);
    if both {
        let far = far[from..from + count].windows(3);
        for ((out, n), f) in pairs.iter_mut().zip(near).zip(far) {
            let sum = |i: usize| 3 * u16::from(n[i]) + u16::from(f[i]);
            *out = pair(sum(0), sum(1), sum(2));
        }
    } else {
        for (out, n) in pairs.iter_mut().zip(near) {
            *out = pair(n[0].into(), n[1].into(), n[2].into());
        }
    }
}

/// JFIF's colours, with 16 bits of fraction.
#[inline(always)]
pub(crate) fn to_rgb(luma: &[u8], cb: &[u8], cr: &[u8], rgb: &mut [u8]) {
    let (pixels, _) = rgb.as_chunks_mut::<3>();
    for (((pixel, &y), &cb), &cr) in pixels.iter_mut().zip(luma).zip(cb).zip(cr) {
        let (y, cb, cr) = (i32::from(y), i32::from(cb) - 128, i32::from(cr) - 128);
        let r = y + ((91881 * cr + 32768) >> 16);
        let g = y + ((-22554 * cb - 46802 * cr + 32768) >> 16);
        let b = y + ((116130 * cb + 32768) >> 16);
        *pixel = [r, g, b].map(|c| c.clamp(0, 255) as u8);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::rng::{Purpose, Rng};

    const KINDS: [&str; 6] = ["444", "422", "440", "420", "gray", "restart"];

    /// A file of `tests/golden/data.py`.
    fn golden(name: &str) -> Vec<u8> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/data/jpeg");
        fs::read(folder.join(name)).unwrap()
    }

    #[test]
    fn whole_and_reduced_pictures_and_all_their_parts_have_pillows_bytes() {
        for (kind, shrink) in KINDS.iter().flat_map(|kind| [1, 2, 4, 8].map(|s| (kind, s))) {
            let file = golden(&format!("{kind}.jpg"));
            let theirs = golden(&format!("{kind}-{shrink}.rgb"));
            let jpeg = Jpeg::parse(&file).unwrap();
            let (width, height) = jpeg.size(shrink);
            let whole = CropBox { left: 0, top: 0, width, height };
            if shrink == 8 && jpeg.shrink(CropBox { width: 800, height: 800, ..whole }, 100) < 8 {
                continue;
            }
            let mut ours = vec![];
            jpeg.decode(whole, shrink, &mut ours).unwrap();
            assert!(ours == theirs, "{kind} at 1 / {shrink}");
            let mut rng = Rng::new(1, Purpose::Augment, &[shrink.into()]);
            for _ in 0..200 {
                let mut side = |whole: u32| {
                    let length = 1 + rng.below(whole.into()) as u32;
                    (rng.below(u64::from(whole - length) + 1) as u32, length)
                };
                let ((left, width), (top, height)) = (side(whole.width), side(whole.height));
                let crop = CropBox { left, top, width, height };
                jpeg.decode(crop, shrink, &mut ours).unwrap();
                let rows = theirs.chunks_exact(3 * whole.width as usize);
                let (from, to) = (3 * left as usize, 3 * (left + width) as usize);
                let part = rows.skip(top as usize).take(height as usize);
                let part: Vec<u8> = part.flat_map(|row| &row[from..to]).copied().collect();
                assert!(ours == part, "{kind} at 1 / {shrink}, {crop:?}");
            }
        }
    }

    #[test]
    fn the_size_is_reduced_only_while_the_crop_stays_as_large_as_the_view() {
        let (file, tall) = (golden("420.jpg"), golden("422.jpg"));
        let crop = |width, height| CropBox { left: 0, top: 0, width, height };
        let shrink =
            |file, width, height| Jpeg::parse(file).unwrap().shrink(crop(width, height), 10);
        assert_eq!(
            [19, 20, 39, 40, 79, 80].map(|side| shrink(&file, side, 90)),
            [1, 2, 2, 4, 4, 8]
        );
        assert_eq!(
            [19, 20, 39, 40, 79, 80].map(|side| shrink(&file, 90, side)),
            [1, 2, 2, 4, 4, 8]
        );
        assert_eq!(shrink(&tall, 90, 90), 4);
    }

    #[test]
    fn data_that_is_cut_or_of_another_kind_is_left_to_the_whole_decoder() {
        let file = golden("420.jpg");
        let mut out = vec![];
        let mut read = |file: &[u8]| {
            let jpeg = Jpeg::parse(file)?;
            let (width, height) = jpeg.size(1);
            jpeg.decode(CropBox { left: 0, top: 0, width, height }, 1, &mut out)
        };
        for cut in 0..file.len() {
            assert!(read(&file[..cut]).is_none(), "cut at {cut}");
        }
        let coded = file.len() - 40;
        let shorter = [&file[..coded - 200], &file[coded..]].concat();
        assert!(read(&shorter).is_none(), "coded data is missing");
        let mut progressive = file.clone();
        let frame = file.windows(2).position(|w| w == [0xff, 0xc0]).unwrap();
        progressive[frame + 1] = 0xc2;
        assert!(Jpeg::parse(&progressive).is_none());
    }
}
