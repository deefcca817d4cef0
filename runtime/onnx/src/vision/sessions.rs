//! The image encoder's sessions: pixels in, features out.

use std::borrow::Cow;

use ort::session::{RunOptions, Session, SessionInputValue};
use ort::value::{Tensor, TensorElementType, ValueType};
use phi_edge_engine::ImagePixels;
use phi_edge_models::VisionConfig;

use crate::error::one_line;
use crate::raw::Element;

/// The sessions of an encoder.
pub(super) enum Sessions {
    /// The whole graph.
    Whole(Session),
    /// The graph cut before its crops are joined.
    Cut(CutSessions),
}

/// The sessions of a graph that is cut.
pub(super) struct CutSessions {
    pub(super) crops: Session,
    pub(super) join: Session,
    /// The value between them.
    pub(super) value: String,
    /// Its axis that counts crops.
    pub(super) axis: usize,
    /// Its dimensions for one crop, known after the first.
    pub(super) dims: Vec<i64>,
}

/// An input by name.
type Input = (Cow<'static, str>, SessionInputValue<'static>);

impl Sessions {
    /// The session that takes pixels.
    fn pixel_session(&self) -> &Session {
        match self {
            Self::Whole(session) => session,
            Self::Cut(cut) => &cut.crops,
        }
    }

    /// The element type of the pixels, and the number of crops that the graph wants, where that is fixed.
    pub(super) fn pixel_form(&self, names: &VisionConfig) -> Result<(Element, Option<usize>), String> {
        let name = names.pixel_values.as_str();
        let inputs = self.pixel_session().inputs();
        let input = inputs.iter().find(|input| input.name() == name);
        match input.map(ort::value::Outlet::dtype) {
            Some(ValueType::Tensor { ty, shape, .. }) if shape.len() == 5 => {
                let element = match ty {
                    TensorElementType::Float32 => Element::F32,
                    TensorElementType::Float16 => Element::F16,
                    other => {
                        return Err(format!(
                            "its input \"{name}\" is {other}; fp32 and fp16 are supported"
                        ));
                    }
                };
                let crops = shape
                    .get(1)
                    .copied()
                    .and_then(|crops| usize::try_from(crops).ok());
                Ok((element, crops.filter(|crops| *crops > 0)))
            }
            Some(_) => Err(format!("its input \"{name}\" is no tensor of five dimensions")),
            None => Err(format!(
                "has no input \"{name}\", which genai_config.json names: the two files are not of the same export"
            )),
        }
    }
}

impl CutSessions {
    /// Appends what the first graph makes of a crop, `[3, side, side]`, to `data`.
    pub(super) fn encode(
        &mut self,
        names: &VisionConfig,
        (crop, side): (&[f32], usize),
        element: Element,
        options: &RunOptions,
        data: &mut Vec<f32>,
    ) -> Result<(), String> {
        let side = to_i64(side);
        let pixels = floats(vec![1, 1, 3, side, side], crop.to_vec(), element)?;
        let inputs = vec![named(&names.pixel_values, pixels)];
        let outputs = self.crops.run_with_options(inputs, options).map_err(one_line)?;
        let value = outputs
            .get(self.value.as_str())
            .ok_or("the crop's features are missing")?;
        self.dims = take_floats(value, data)?;
        Ok(())
    }

    /// Joins what the first graph made of `crops` crops.
    pub(super) fn join(
        &mut self,
        names: &VisionConfig,
        (data, pixels): (&[f32], &ImagePixels),
        element: Element,
        options: &RunOptions,
    ) -> Result<Vec<f32>, String> {
        let mut dims = self.dims.clone();
        let axis = dims
            .get_mut(self.axis)
            .ok_or("the crops' features have too few dimensions")?;
        *axis *= to_i64(pixels.crops);
        if dims.iter().product::<i64>() != to_i64(data.len()) {
            return Err(format!("{} features of crops do not fit {dims:?}", data.len()));
        }
        let mut inputs = vec![
            named(&self.value, floats(dims, data.to_vec(), element)?),
            named(&names.image_sizes, sizes(pixels)?),
        ];
        // Only shapes are asked for.
        if self
            .join
            .inputs()
            .iter()
            .any(|input| input.name() == names.pixel_values)
        {
            let side = to_i64(pixels.side);
            let blank = vec![0.0; pixels.data.len()];
            let blank = floats(vec![1, to_i64(pixels.crops), 3, side, side], blank, element)?;
            inputs.push(named(&names.pixel_values, blank));
        }
        inputs.retain(|(name, _)| self.join.inputs().iter().any(|input| input.name() == name));
        features(&mut self.join, inputs, names, options)
    }
}

/// Encodes an image by the whole graph, its crops filled up to the number that the graph wants.
pub(super) fn encode_whole(
    session: &mut Session,
    names: &VisionConfig,
    pixels: &ImagePixels,
    (element, wanted): (Element, Option<usize>),
    options: &RunOptions,
) -> Result<Vec<f32>, String> {
    let crops = wanted.unwrap_or(pixels.crops).max(pixels.crops);
    let mut data = pixels.data.clone();
    data.resize(crops * 3 * pixels.side * pixels.side, 0.0);
    let side = to_i64(pixels.side);
    let inputs = vec![
        named(
            &names.pixel_values,
            floats(vec![1, to_i64(crops), 3, side, side], data, element)?,
        ),
        named(&names.image_sizes, sizes(pixels)?),
    ];
    features(session, inputs, names, options)
}

fn features(
    session: &mut Session,
    inputs: Vec<Input>,
    names: &VisionConfig,
    options: &RunOptions,
) -> Result<Vec<f32>, String> {
    let outputs = session.run_with_options(inputs, options).map_err(one_line)?;
    let output = outputs
        .get(names.image_features.as_str())
        .ok_or("the features are missing")?;
    let mut data = Vec::new();
    take_floats(output, &mut data)?;
    Ok(data)
}

fn named(name: &str, value: SessionInputValue<'static>) -> Input {
    (Cow::Owned(name.to_owned()), value)
}

/// The padded size of an image in pixels, height first.
fn sizes(pixels: &ImagePixels) -> Result<SessionInputValue<'static>, String> {
    let (rows, columns) = pixels.grid;
    let sizes = vec![to_i64(rows * pixels.side), to_i64(columns * pixels.side)];
    Ok(Tensor::from_array((vec![1i64, 2], sizes))
        .map_err(one_line)?
        .into_dyn()
        .into())
}

fn floats(dims: Vec<i64>, data: Vec<f32>, element: Element) -> Result<SessionInputValue<'static>, String> {
    Ok(if element == Element::F16 {
        let halves: Vec<half::f16> = data.into_iter().map(half::f16::from_f32).collect();
        Tensor::from_array((dims, halves))
            .map_err(one_line)?
            .into_dyn()
            .into()
    } else {
        Tensor::from_array((dims, data))
            .map_err(one_line)?
            .into_dyn()
            .into()
    })
}

/// Appends a tensor's values to `data`; returns its dimensions.
fn take_floats(value: &ort::value::DynValue, data: &mut Vec<f32>) -> Result<Vec<i64>, String> {
    if let Ok((dims, values)) = value.try_extract_tensor::<f32>() {
        data.extend_from_slice(values);
        return Ok(dims.to_vec());
    }
    let (dims, values) = value.try_extract_tensor::<half::f16>().map_err(one_line)?;
    data.extend(values.iter().map(|value| value.to_f32()));
    Ok(dims.to_vec())
}

fn to_i64(size: usize) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}
