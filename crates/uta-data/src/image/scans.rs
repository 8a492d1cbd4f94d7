//! Whole JPEGs of every Huffman-coded 8-bit kind: any number of scans, progressive ones, any sampling that libjpeg reads, RGB,
//! CMYK and YCCK. [`crate::image::jpeg`] is the quick way for crops of the common kind; this one keeps all coefficients and gives
//! libjpeg-turbo's very bytes, or an error: every block of every scan must be there, and no pixel is invented.

use std::borrow::Cow;

use pulp::{Arch, NullaryFnOnce};

use crate::image::jpeg::{
    BLOCK, Bits, Huffman, Quantised, ZIGZAG, be16, extend, inverse_8, to_rgb, unstuff, widen,
};

/// A fault of a file.
pub(crate) type Problem = Cow<'static, str>;

/// Beyond these a file only costs time.
const MAX_SCANS: usize = 500;

/// Not yet sent, of a coefficient's lowest bit.
const UNSEEN: u8 = u8::MAX;

/// The colours that the components are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Colours {
    Gray,
    YCbCr,
    Rgb,
    Cmyk,
    Ycck,
}

struct Component {
    id: u8,
    /// Blocks of an MCU, across and down.
    h: usize,
    v: usize,
    table: usize,
    /// The table at the component's first scan.
    quantisation: Option<[u16; 64]>,
    /// Samples of the picture.
    width: usize,
    height: usize,
    /// Blocks of a row as they are stored, those that fill up the last MCU included.
    stride: usize,
    /// Blocks after blocks, 64 each, in the order of the file.
    coefficients: Vec<i16>,
    /// The lowest bit that was sent of each coefficient.
    precision: [u8; 64],
}

/// A JPEG whose headers up to the first scan were read.
pub(crate) struct Scans<'a> {
    /// Columns.
    pub(crate) width: u32,
    /// Rows.
    pub(crate) height: u32,
    progressive: bool,
    components: Vec<Component>,
    quantisation: [Option<[u16; 64]>; 4],
    dc: [Option<Box<Huffman>>; 4],
    ac: [Option<Box<Huffman>>; 4],
    restart: usize,
    jfif: bool,
    adobe: Option<u8>,
    rest: &'a [u8],
}

/// A scan's header.
struct Scan {
    /// Component, DC table, AC table.
    parts: Vec<(usize, usize, usize)>,
    /// First and last coefficient.
    from: usize,
    to: usize,
    /// Bits already sent of them, counted from below; 0 for none.
    high: u8,
    /// The lowest bit that is sent.
    low: u8,
}

impl<'a> Scans<'a> {
    /// Reads the headers.
    pub(crate) fn open(bytes: &'a [u8]) -> Result<Scans<'a>, Problem> {
        let standard = include_bytes!("../../assets/standard.dht");
        let mut scans = Scans {
            width: 0,
            height: 0,
            progressive: false,
            components: vec![],
            quantisation: [None; 4],
            dc: [const { None }; 4],
            ac: [const { None }; 4],
            restart: 0,
            jfif: false,
            adobe: None,
            rest: bytes.get(2..).unwrap_or_default(),
        };
        // Frames of films leave these tables out.
        Huffman::read(standard, &mut scans.dc, &mut scans.ac).ok_or("no table of codes")?;
        while scans.components.is_empty() {
            match scans.marker()? {
                0xd9 | 0xda => return Err("it has no frame header".into()),
                code => scans.segment(code)?,
            }
        }
        Ok(scans)
    }

    /// The next marker's code, whatever lies before it.
    fn marker(&mut self) -> Result<u8, Problem> {
        loop {
            let at = memchr::memchr(0xff, self.rest).ok_or("cut short")?;
            self.rest = &self.rest[at..];
            let fill = self.rest.iter().take_while(|&&byte| byte == 0xff).count();
            let code = *self.rest.get(fill).ok_or("cut short")?;
            self.rest = &self.rest[fill + 1..];
            // Nothing, restart markers of a scan that is done with, and TEM.
            if !matches!(code, 0 | 1 | 0xd0..=0xd7) {
                return Ok(code);
            }
        }
    }

    fn take_segment(&mut self) -> Result<&'a [u8], Problem> {
        let length = usize::from(be16(self.rest, 0).ok_or("cut short")?);
        let segment = self.rest.get(2.min(length)..length).ok_or("cut short")?;
        self.rest = &self.rest[length.max(2)..];
        Ok(segment)
    }

    fn segment(&mut self, code: u8) -> Result<(), Problem> {
        let bad = |what: &'static str| move || Problem::from(what);
        if code == 0xd8 {
            return Err("a second picture begins within it".into());
        }
        let segment = self.take_segment()?;
        match code {
            0xc0..=0xc2 => {
                self.progressive = code == 0xc2;
                self.frame(segment)?;
            }
            0xc4 => Huffman::read(segment, &mut self.dc, &mut self.ac)
                .ok_or_else(bad("a table of codes is damaged"))?,
            0xdb => Quantised::read(segment, &mut self.quantisation)
                .ok_or_else(bad("a quantisation table is damaged"))?,
            0xdd => {
                let interval = be16(segment, 0).ok_or_else(bad("a header is damaged"))?;
                self.restart = interval.into();
            }
            0xe0 => self.jfif |= segment.starts_with(b"JFIF\0") && segment.len() >= 14,
            0xee if segment.starts_with(b"Adobe") && segment.len() >= 12 => {
                self.adobe = segment.get(11).copied();
            }
            0xcc | 0xdc | 0xe1..=0xef | 0xfe => {}
            0xc9..=0xcb | 0xcd..=0xcf => return Err("arithmetic coding is not read".into()),
            0xc3 | 0xc5..=0xc7 => return Err("lossless and hierarchical JPEGs are not read".into()),
            _ => return Err(format!("its marker {code:#04x} is unknown").into()),
        }
        Ok(())
    }

    fn frame(&mut self, segment: &[u8]) -> Result<(), Problem> {
        let damaged = || Problem::from("its frame header is damaged");
        if !self.components.is_empty() {
            return Err("it has two frame headers".into());
        }
        let (&[depth, .., count], rest) = segment.split_first_chunk::<6>().ok_or_else(damaged)?;
        if depth != 8 {
            return Err(format!("{depth} bits a sample are not read").into());
        }
        let height = be16(segment, 1).ok_or_else(damaged)?;
        let width = be16(segment, 3).ok_or_else(damaged)?;
        (self.width, self.height) = (width.into(), height.into());
        let (parts, &[]) = rest.as_chunks::<3>() else { return Err(damaged()) };
        if ![1, 3, 4].contains(&parts.len()) || parts.len() != usize::from(count) {
            return Err(format!("{count} components are not read").into());
        }
        let factors = |hv: u8| (usize::from(hv >> 4), usize::from(hv & 15));
        let most = parts.iter().map(|&[_, hv, _]| factors(hv));
        let (most_h, most_v) = most.fold((1, 1), |a, b| (a.0.max(b.0), a.1.max(b.1)));
        for (i, &[id, hv, table]) in parts.iter().enumerate() {
            let (h, v) = factors(hv);
            let sane = (1..=4).contains(&h) && (1..=4).contains(&v) && table < 4;
            if !sane || parts[..i].iter().any(|part| part[0] == id) {
                return Err(damaged());
            }
            if most_h % h != 0 || most_v % v != 0 {
                return Err("its components' sizes have no whole ratio".into());
            }
            let across = usize::from(width).div_ceil(BLOCK * most_h);
            self.components.push(Component {
                id,
                h,
                v,
                table: table.into(),
                quantisation: None,
                width: (usize::from(width) * h).div_ceil(most_h),
                height: (usize::from(height) * v).div_ceil(most_v),
                stride: across * h,
                coefficients: vec![],
                precision: [UNSEEN; 64],
            });
        }
        Ok(())
    }

    fn most(&self) -> (usize, usize) {
        self.components.iter().fold((1, 1), |(h, v), c| (h.max(c.h), v.max(c.v)))
    }

    fn colours(&self) -> Colours {
        let ids = self.components.iter().map(|c| c.id);
        match (self.components.len(), self.adobe) {
            (1, _) => Colours::Gray,
            (3, Some(0)) if !self.jfif => Colours::Rgb,
            (3, None) if !self.jfif && ids.eq(*b"RGB") => Colours::Rgb,
            (3, _) => Colours::YCbCr,
            (_, None | Some(0)) => Colours::Cmyk,
            _ => Colours::Ycck,
        }
    }

    /// Whether Pillow holds the picture in four channels.
    pub(crate) fn cmyk(&self) -> bool {
        self.components.len() == 4
    }

    /// The pixels, `[height, width, 3]`: those of Pillow's `convert("RGB")`.
    pub(crate) fn decode(mut self) -> Result<Vec<u8>, Problem> {
        let down = (self.height as usize).div_ceil(BLOCK * self.most().1);
        for c in &mut self.components {
            c.coefficients = vec![0; c.stride * down * c.v * 64];
        }
        let (mut coded, mut ends) = (vec![], vec![]);
        for count in 0.. {
            let code = loop {
                match self.marker()? {
                    code @ (0xd9 | 0xda) => break code,
                    code => self.segment(code)?,
                }
            };
            if code == 0xd9 {
                break;
            }
            if count == MAX_SCANS {
                return Err(format!("it has more than {MAX_SCANS} scans").into());
            }
            let scan = self.scan_header()?;
            self.rest = unstuff(self.rest, &mut coded, &mut ends)
                .ok_or("cut short, or a restart marker is missing")?;
            self.scan(&scan, &coded, &ends)?;
        }
        self.complete()?;
        Arch::new().dispatch(Pixels(self))
    }

    fn scan_header(&mut self) -> Result<Scan, Problem> {
        let damaged = || Problem::from("a scan's header is damaged");
        let segment = self.take_segment()?;
        let (&count, rest) = segment.split_first().ok_or_else(damaged)?;
        let (list, &[from, to, bits]) =
            rest.split_at_checked(2 * usize::from(count)).ok_or_else(damaged)?
        else {
            return Err(damaged());
        };
        let mut parts: Vec<(usize, usize, usize)> = vec![];
        for &[id, tables] in list.as_chunks::<2>().0 {
            let i = self.components.iter().position(|c| c.id == id).ok_or_else(damaged)?;
            let (dc, ac) = (usize::from(tables >> 4), usize::from(tables & 15));
            if dc > 3 || ac > 3 || parts.last().is_some_and(|last| last.0 >= i) {
                return Err(damaged());
            }
            parts.push((i, dc, ac));
        }
        let blocks: usize =
            parts.iter().map(|p| self.components[p.0].h * self.components[p.0].v).sum();
        if parts.is_empty() || parts.len() > 1 && blocks > 10 {
            return Err(damaged());
        }
        let mut scan = Scan { parts, from: 0, to: 63, high: 0, low: 0 };
        if self.progressive {
            (scan.from, scan.to) = (from.into(), to.into());
            (scan.high, scan.low) = (bits >> 4, bits & 15);
            let band = match from {
                0 => to == 0,
                _ => from <= to && to < 64 && count == 1,
            };
            let order = scan.low <= 13 && (scan.high == 0 || scan.low + 1 == scan.high);
            if !band || !order {
                return Err(damaged());
            }
        }
        for &(i, ..) in &scan.parts {
            let c = &mut self.components[i];
            let before = if scan.high == 0 { UNSEEN } else { scan.high };
            let band = &mut c.precision[scan.from..=scan.to];
            if band.iter().any(|&bit| bit != before) {
                return Err("a scan comes twice, or before its time".into());
            }
            band.fill(scan.low);
            if scan.from > 0 && c.precision[0] == UNSEEN {
                return Err("a scan comes twice, or before its time".into());
            }
            if c.quantisation.is_none() {
                let table = self.quantisation[c.table].ok_or("a quantisation table is missing")?;
                c.quantisation = Some(table);
            }
        }
        Ok(scan)
    }

    /// Decodes a scan into the coefficients.
    fn scan(&mut self, scan: &Scan, coded: &[u8], ends: &[usize]) -> Result<(), Problem> {
        let (most_h, most_v) = self.most();
        let single = scan.parts.len() == 1;
        // One component goes block by block, and has none that only fill up an MCU.
        let (across, down) = match self.components[scan.parts[0].0] {
            Component { width, height, .. } if single => {
                (width.div_ceil(BLOCK), height.div_ceil(BLOCK))
            }
            _ => (
                (self.width as usize).div_ceil(BLOCK * most_h),
                (self.height as usize).div_ceil(BLOCK * most_v),
            ),
        };
        for &(_, dc, ac) in &scan.parts {
            let (needs_dc, needs_ac) = (scan.from == 0 && scan.high == 0, scan.to > 0);
            if needs_dc && self.dc[dc].is_none() || needs_ac && self.ac[ac].is_none() {
                return Err("a table of codes is missing".into());
            }
        }
        let Scans { components, dc: dcs, ac: acs, progressive, restart, .. } = self;
        let mut bits = Bits::new(coded, 0);
        let mut before = [0i16; 4];
        let (mut interval, mut run) = (0, 0u32);
        let mut left = if *restart > 0 { *restart } else { usize::MAX };
        for mcu in 0..across * down {
            let missing = || -> Problem {
                format!("its coded data ends or is damaged at {mcu} of {} units", across * down)
                    .into()
            };
            if left == 0 {
                bits = Bits::new(coded, *ends.get(interval).ok_or_else(missing)?);
                (interval, left, run, before) = (interval + 1, *restart, 0, [0; 4]);
            }
            left -= 1;
            let (my, mx) = (mcu / across, mcu % across);
            for (&(i, dc, ac), before) in scan.parts.iter().zip(&mut before) {
                let c = &mut components[i];
                let (h, v) = if single { (1, 1) } else { (c.h, c.v) };
                for (y, x) in (0..v).flat_map(|y| (0..h).map(move |x| (y, x))) {
                    let at = 64 * ((my * v + y) * c.stride + mx * h + x);
                    let block = c.coefficients.get_mut(at..).and_then(|c| c.first_chunk_mut());
                    let block: &mut [i16; 64] = block.ok_or_else(missing)?;
                    let (dc, ac) = (dcs[dc].as_deref(), acs[ac].as_deref());
                    let done = match (*progressive, scan.from, scan.high) {
                        (false, ..) => sequential(&mut bits, dc, ac, before, block),
                        (_, 0, 0) => first_dc(&mut bits, dc, before, scan.low, block),
                        (_, 0, _) => next_dc(&mut bits, scan.low, block),
                        (_, _, 0) => first_ac(&mut bits, ac, scan, &mut run, block),
                        _ => next_ac(&mut bits, ac, scan, &mut run, block),
                    };
                    done.ok_or_else(missing)?;
                }
            }
            // More was read than was there.
            if ends.get(interval).is_none_or(|&end| bits.position() > end) {
                return Err(missing());
            }
        }
        Ok(())
    }

    /// Whether all is there that Pillow shows as it is: of a progressive file that lacks scans of low frequencies, Pillow makes
    /// the blocks smooth.
    fn complete(&self) -> Result<(), Problem> {
        for c in &self.components {
            let least = if self.progressive { 10 } else { 64 };
            if c.precision[0] == UNSEEN || c.precision[1..least].iter().any(|&bit| bit != 0) {
                return Err("scans are missing".into());
            }
        }
        Ok(())
    }

    #[inline(always)]
    fn pixels(mut self) -> Result<Vec<u8>, Problem> {
        let (width, height) = (self.width as usize, self.height as usize);
        let (most_h, most_v) = self.most();
        let colours = self.colours();
        let mut planes = vec![];
        for c in &mut self.components {
            let quantised = Quantised::new(c.quantisation.as_ref().ok_or("scans are missing")?);
            planes.push(plane(c, &quantised));
            c.coefficients = vec![];
        }
        let mut rgb = vec![0; 3 * width * height];
        let mut rows = vec![vec![0; width + 2]; planes.len()];
        for (y, out) in rgb.chunks_exact_mut((3 * width).max(1)).enumerate() {
            for ((c, plane), row) in self.components.iter().zip(&planes).zip(&mut rows) {
                upsample(c, plane, most_h / c.h, most_v / c.v, y, width, row);
            }
            let channel = |i: usize| &rows[i][..width];
            let (pixels, _) = out.as_chunks_mut::<3>();
            match colours {
                Colours::Gray => pixels.iter_mut().zip(channel(0)).for_each(|(p, &y)| *p = [y; 3]),
                Colours::YCbCr | Colours::Ycck => to_rgb(channel(0), channel(1), channel(2), out),
                Colours::Rgb | Colours::Cmyk => {
                    for (x, pixel) in pixels.iter_mut().enumerate() {
                        *pixel = [rows[0][x], rows[1][x], rows[2][x]];
                    }
                }
            }
            if planes.len() == 4 {
                // Inks are stored inverted, as Adobe's programs do and Pillow expects of everyone.
                let (pixels, _) = out.as_chunks_mut::<3>();
                for (pixel, &key) in pixels.iter_mut().zip(channel(3)) {
                    *pixel = pixel.map(|level| {
                        let ink = if colours == Colours::Ycck { level } else { 255 - level };
                        let product = u32::from(ink) * u32::from(key) + 128;
                        key.saturating_sub(((product + (product >> 8)) >> 8) as u8)
                    });
                }
            }
        }
        Ok(rgb)
    }
}

/// [`Scans::pixels`], compiled for the widest registers the machine may have.
struct Pixels<'a>(Scans<'a>);

impl NullaryFnOnce for Pixels<'_> {
    type Output = Result<Vec<u8>, Problem>;

    #[inline(always)]
    fn call(self) -> Self::Output {
        self.0.pixels()
    }
}

/// The samples of a component, whole blocks, `stride * 8` a row.
#[inline(always)]
fn plane(c: &Component, quantised: &Quantised) -> Vec<u8> {
    let stride = c.stride * BLOCK;
    let mut samples = vec![0; c.coefficients.len()];
    for (i, coefficients) in c.coefficients.as_chunks::<64>().0.iter().enumerate() {
        let mut block = [0; 65];
        for (k, &coefficient) in coefficients.iter().enumerate() {
            block[usize::from(ZIGZAG[k])] = coefficient.wrapping_mul(quantised.values[k]);
        }
        let at = i / c.stride * BLOCK * stride + i % c.stride * BLOCK;
        inverse_8(&block, &mut samples[at..], stride);
    }
    samples
}

/// A row of the picture of a component that has one sample for `across` x `down` pixels; `row` has two places more.
#[inline(always)]
fn upsample(
    c: &Component,
    plane: &[u8],
    across: usize,
    down: usize,
    y: usize,
    width: usize,
    row: &mut [u8],
) {
    let line = |y: usize| &plane[y * c.stride * BLOCK..][..c.width];
    // The row that lies next on the other side of the pixels.
    let other = match y % 2 {
        0 => (y / 2).saturating_sub(1),
        _ => (y / 2 + 1).min(c.height - 1),
    };
    match (across, down) {
        (1, 1) => row[..width].copy_from_slice(line(y)),
        (2, 1) if c.width > 2 => widen(line(y), line(y), false, 0, c.width, row),
        (2, 2) if c.width > 2 => widen(line(y / 2), line(other), true, 0, c.width, row),
        (1, 2) => {
            let bias = if y.is_multiple_of(2) { 1 } else { 2 };
            for ((out, &near), &far) in row.iter_mut().zip(line(y / 2)).zip(line(other)) {
                *out = ((3 * u16::from(near) + u16::from(far) + bias) >> 2) as u8;
            }
        }
        _ => {
            for (out, &sample) in row[..width].chunks_mut(across).zip(line(y / down)) {
                out.fill(sample);
            }
        }
    }
}

/// The difference of a DC coefficient from the one before.
fn difference(bits: &mut Bits<'_>, table: Option<&Huffman>) -> Option<i16> {
    let size = bits.symbol(table?)?;
    (size < 16).then_some(())?;
    Some(extend(bits.number_of(size.into())?, size.into()))
}

fn sequential(
    bits: &mut Bits<'_>,
    dc: Option<&Huffman>,
    ac: Option<&Huffman>,
    before: &mut i16,
    block: &mut [i16; 64],
) -> Option<()> {
    *before = before.wrapping_add(difference(bits, dc)?);
    block[0] = *before;
    let (ac, mut k) = (ac?, 1);
    while k < 64 {
        let symbol = bits.symbol(ac)?;
        let (run, size) = (usize::from(symbol >> 4), u32::from(symbol & 15));
        match (run, size) {
            (15, 0) => k += 16,
            (_, 0) => break,
            _ => {
                k += run;
                *block.get_mut(k)? = extend(bits.number_of(size)?, size);
                k += 1;
            }
        }
    }
    (k <= 64).then_some(())
}

fn first_dc(
    bits: &mut Bits<'_>,
    dc: Option<&Huffman>,
    before: &mut i16,
    low: u8,
    block: &mut [i16; 64],
) -> Option<()> {
    *before = before.wrapping_add(difference(bits, dc)?);
    block[0] = before.wrapping_shl(low.into());
    Some(())
}

fn next_dc(bits: &mut Bits<'_>, low: u8, block: &mut [i16; 64]) -> Option<()> {
    if bits.number_of(1)? == 1 {
        block[0] |= 1 << low;
    }
    Some(())
}

/// The first bits of a band. `run`: blocks, this one included, that have none.
fn first_ac(
    bits: &mut Bits<'_>,
    ac: Option<&Huffman>,
    scan: &Scan,
    run: &mut u32,
    block: &mut [i16; 64],
) -> Option<()> {
    if *run > 0 {
        *run -= 1;
        return Some(());
    }
    let (ac, mut k) = (ac?, scan.from);
    while k <= scan.to {
        let symbol = bits.symbol(ac)?;
        let (zeros, size) = (usize::from(symbol >> 4), u32::from(symbol & 15));
        match (zeros, size) {
            (15, 0) => k += 16,
            (_, 0) => {
                *run = (1 << zeros) + bits.number_of(zeros as u32)? - 1;
                return Some(());
            }
            _ => {
                k += zeros;
                (k <= scan.to).then_some(())?;
                block[k] = extend(bits.number_of(size)?, size).wrapping_shl(scan.low.into());
                k += 1;
            }
        }
    }
    Some(())
}

/// One more bit of a band: of the coefficients that are not 0, and of those that were until now.
fn next_ac(
    bits: &mut Bits<'_>,
    ac: Option<&Huffman>,
    scan: &Scan,
    run: &mut u32,
    block: &mut [i16; 64],
) -> Option<()> {
    let bit = 1i16 << scan.low;
    let refine = |bits: &mut Bits<'_>, value: &mut i16| -> Option<()> {
        if bits.number_of(1)? == 1 && *value & bit == 0 {
            *value = value.wrapping_add(if *value >= 0 { bit } else { -bit });
        }
        Some(())
    };
    let (ac, mut k) = (ac?, scan.from);
    if *run == 0 {
        while k <= scan.to {
            let symbol = bits.symbol(ac)?;
            let (mut zeros, size) = (u32::from(symbol >> 4), symbol & 15);
            let value = match (zeros, size) {
                (15, 0) => 0,
                (_, 0) => {
                    *run = (1 << zeros) + bits.number_of(zeros)?;
                    break;
                }
                (_, 1) => {
                    if bits.number_of(1)? == 1 {
                        bit
                    } else {
                        -bit
                    }
                }
                _ => return None,
            };
            while k <= scan.to {
                if block[k] != 0 {
                    refine(bits, &mut block[k])?;
                } else if zeros == 0 {
                    break;
                } else {
                    zeros -= 1;
                }
                k += 1;
            }
            if value != 0 {
                (k <= scan.to).then_some(())?;
                block[k] = value;
            }
            k += 1;
        }
    }
    if *run > 0 {
        for value in block.get_mut(k..=scan.to).into_iter().flatten() {
            if *value != 0 {
                refine(bits, value)?;
            }
        }
        *run -= 1;
    }
    Some(())
}
