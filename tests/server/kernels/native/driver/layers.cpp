// Checks decoder layers one by one against plain loops, then all in one call, and each sequence in its own calls,
// against the same bits. Checks the head, too.

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <numeric>

#include "adapters.h"
#include "loops.h"

namespace driver {
namespace {

// The results of a layer's experts for the router's choices.
std::vector<float> expert_outputs(Handle* handle, const Layer& layer, const Step& step, int64_t place) {
  if (!layer.has_router()) return {};
  const int64_t top_k = layer.mixture.router.top_k, num_experts = layer.mixture.num_experts;
  const auto first = step.chosen.begin() + step.place_of_choices(place);
  const std::vector<int32_t> expert_of(first, first + step.call.tokens * top_k);
  const Sorted sorted(expert_of, num_experts);
  const std::vector<uint64_t> addresses = layer.experts[0].addresses();
  const int64_t width = layer.experts[0].hidden;
  std::vector<float> outputs(expert_of.size() * static_cast<size_t>(width), NAN);
  ExpertBatch batch{};
  batch.slots = addresses.data();
  batch.starts = sorted.starts.data();
  batch.choices = sorted.choices.data();
  std::vector<float> rows = rows_of_experts(layer, step);
  if (layer.mixture.scales_input) {  // a row for each choice
    rows.clear();
    for (size_t choice = 0; choice < expert_of.size(); ++choice) {
      const auto token = static_cast<int64_t>(choice) / top_k;
      const float by = step.weights[static_cast<size_t>(step.place_of_choices(place)) + choice];
      for (int64_t d = 0; d < layer.hidden; ++d) rows.push_back(step.normed[token * layer.hidden + d] * by);
    }
  }
  rows.shrink_to_fit();
  batch.x = rows.data();
  batch.outputs = outputs.data();
  batch.num_experts = num_experts;
  batch.top_k = layer.mixture.scales_input ? 1 : top_k;
  batch.x_stride = width;
  batch.x_format = Format::kFloat32;
  batch.is_exact = step.call.is_exact;
  if (greenroom_experts(handle, &layer.mixture.experts, &batch)) std::abort();
  return outputs;
}

// Runs the chosen experts of a layer that has begun in two calls, each of them in one, and finishes the layer.
void run_in_batches(Handle* handle, const Layer& layer, const Step& step, int64_t place) {
  const auto first = step.chosen.begin() + step.place_of_choices(place);
  const std::vector<uint64_t> addresses = layer.experts[0].addresses();
  std::vector<int32_t> experts[2];
  std::vector<uint64_t> slots[2];
  for (int32_t expert = 0; expert < layer.mixture.num_experts; ++expert) {
    const auto end = first + step.call.tokens * layer.mixture.router.top_k;
    if (std::find(first, end, expert) == end) continue;
    const int64_t batch = between(0, 1);
    experts[batch].push_back(expert);
    slots[batch].push_back(addresses[static_cast<size_t>(expert)]);
  }
  for (int batch = 0; batch < 2; ++batch) {
    const auto count = static_cast<int64_t>(experts[batch].size());
    if (greenroom_chosen_experts(handle, &layer.spec, &step.call, place, experts[batch].data(), slots[batch].data(), count,
                                 batch)) {
      std::abort();
    }
  }
}

// Runs each layer in its own call, and checks it against loops.
void run_in_parts(Handle* handle, const char* level, const std::deque<Layer>& layers, Step& step) {
  int64_t place = 0;
  for (const Layer& layer : layers) {
    std::vector<float> given = step.hidden;
    const std::vector<char> keys = layer.keys, values = layer.values;
    if (greenroom_norm_input(handle, &layer.spec, &step.call)) std::abort();
    check_input_norm(level, layer, step);
    if (greenroom_begin_layer(handle, &layer.spec, &step.call, place)) std::abort();
    check_attention(level, layer, step, given, keys, values);
    check_norm_and_router(level, layer, step, given, place);
    const std::vector<float> outputs = expert_outputs(handle, layer, step, place);
    given = step.hidden;
    if (layer.is_projected()) {  // whose rows have other last bits in loops
      run_in_batches(handle, layer, step, place);
    } else if (greenroom_finish_layer(handle, &layer.spec, &step.call, place, outputs.data())) {
      std::abort();
    }
    if (step.call.is_exact) check_finish(level, layer, step, place, given, outputs);
    place += layer.has_router();
  }
}

// Runs layers whose experts are all in memory.
void run_all(Handle* handle, const LayerSpec* layers, int64_t count, const StepCall& call, int64_t place) {
  int64_t num_run = -1;
  if (one_in(2)) {
    if (greenroom_layers(handle, layers, count, &call, place, &num_run)) std::abort();
  } else {
    greenroom_start_layers(handle, layers, count, &call, place, &num_run);
    if (greenroom_join(handle)) std::abort();
  }
  if (num_run != count) std::abort();
}

// Checks that a layer which has run left no expert to be read that it predicted of the next one, at `place`.
void check_predicted(const char* level, const Step& step, const Mixture& next, int64_t place) {
  const StepPredictions& predictions = *step.call.predictions;
  const int32_t* predicted = predictions.chosen + step.place_of_choices(place);
  int64_t num_missing = 0;
  for (int64_t i = 0; i < step.call.tokens * next.router.top_k; ++i) {
    num_missing += predicted[i] < next.num_experts && !step.slots[place * step.call.most_experts + predicted[i]];
  }
  if (predictions.parts[place]) check("a missing expert", level, Format::kFloat32, static_cast<double>(num_missing), 0, 0);
}

// Runs layers where some experts are not in memory, in as few calls as there may be, with predictions or without.
void run_where_some_are_missing(Handle* handle, const char* level, const std::deque<Layer>& layers,
                                const LayerSpec* specs, Step& step) {
  for (uint64_t& slot : step.slots) slot = between(0, 3) ? slot : 0;
  std::vector<int32_t> predicted(step.chosen.size(), -1);
  std::vector<uint32_t> parts(static_cast<size_t>(step.num_routed));
  for (uint32_t& of_layer : parts) of_layer = one_in(2) ? 0xff : 0;
  const StepPredictions predictions{predicted.data(), parts.data(), 8};
  if (one_in(2)) step.call.predictions = &predictions;
  const auto num_layers = static_cast<int64_t>(layers.size());
  for (int64_t index = 0, place = 0, num_run; index < num_layers; ++index, place += layers[index - 1].has_router()) {
    if (greenroom_layers(handle, specs + index, num_layers - index, &step.call, place, &num_run)) std::abort();
    for (const int64_t end = index + num_run; index < end; ++index) {
      const auto* next = static_cast<const Mixture*>(specs[index].next_mixture);
      if (next && step.call.predictions) check_predicted(level, step, *next, place + 1);
      place += layers[index].has_router();
    }
    if (index == num_layers) return;
    if (layers[index].is_projected() || one_in(2)) {
      run_in_batches(handle, layers[index], step, place);
      continue;
    }
    const std::vector<float> outputs = expert_outputs(handle, layers[index], step, place);
    if (greenroom_finish_layer(handle, specs + index, &step.call, place, outputs.data())) std::abort();
  }
}

// Runs each layer as one whose mixer is external, after the mixer.
void run_mixers_apart(Handle* handle, const std::deque<Layer>& layers, Step& step) {
  int64_t place = 0;
  for (const Layer& layer : layers) {
    if (greenroom_begin_layer(handle, &layer.spec, &step.call, place)) std::abort();
    LayerSpec rest = layer.spec;
    rest.mixer_kind = MixerKind::kExternal;
    rest.mixer = nullptr;
    rest.mixer_norm = {};
    run_all(handle, &rest, 1, step.call, place);
    place += layer.has_router();
  }
}

// Compares some rows of a step with the same rows of another.
void check_rows(const char* what, const char* level, const std::deque<Layer>& layers, const Step& found,
                int64_t found_row, const Step& wanted, int64_t wanted_row, int64_t rows) {
  const int64_t hidden = found.call.hidden_size;
  check_same(what, level, found.hidden.data() + found_row * hidden, wanted.hidden.data() + wanted_row * hidden,
             rows * hidden * 4);
  int64_t place = 0;
  for (const Layer& layer : layers) {
    if (!layer.has_router()) continue;
    const int64_t top_k = layer.mixture.router.top_k, bytes = rows * top_k * 4;
    const int64_t there = found.place_of_choices(place) + found_row * top_k;
    const int64_t here = wanted.place_of_choices(place) + wanted_row * top_k;
    check_same(what, level, found.chosen.data() + there, wanted.chosen.data() + here, bytes);
    check_same(what, level, found.weights.data() + there, wanted.weights.data() + here, bytes);
    ++place;
  }
}

void check_counts(const char* level, const std::deque<Layer>& layers, const Step& step) {
  int64_t place = 0;
  for (const Layer& layer : layers) {
    if (!layer.has_router()) continue;
    const auto first = step.chosen.begin() + step.place_of_choices(place);
    for (int32_t expert = 0; expert < layer.mixture.num_experts; ++expert) {
      const auto rows = std::count(first, first + step.call.tokens * layer.mixture.router.top_k, expert);
      const auto found = static_cast<double>(step.counts[place * step.call.most_experts + expert]);
      check("a count of rows", level, Format::kFloat32, found, static_cast<double>(rows), 0);
    }
    ++place;
  }
}

// The caches of all layers.
struct Caches {
  explicit Caches(const std::deque<Layer>& layers) {
    for (const Layer& layer : layers) {
      keys.push_back(layer.keys);
      values.push_back(layer.values);
      for (const Convolved* of : layer.convolutions) states.push_back(of->states);
    }
  }
  void put_back(std::deque<Layer>& layers) const {
    for (size_t i = 0; i < layers.size(); ++i) {
      std::copy(keys[i].begin(), keys[i].end(), layers[i].keys.begin());
      std::copy(values[i].begin(), values[i].end(), layers[i].values.begin());
    }
    auto saved = states.begin();
    for (Layer& layer : layers) {
      for (Convolved* of : layer.convolutions) {
        std::copy(saved->begin(), saved->end(), of->states.begin());
        ++saved;
      }
    }
  }
  void check_equal(const char* what, const char* level, const std::deque<Layer>& layers) const {
    for (size_t i = 0; i < layers.size(); ++i) {
      const auto bytes = static_cast<int64_t>(keys[i].size());
      check_same(what, level, layers[i].keys.data(), keys[i].data(), bytes);
      check_same(what, level, layers[i].values.data(), values[i].data(), bytes);
    }
    auto saved = states.begin();
    for (const Layer& layer : layers) {
      for (const Convolved* of : layer.convolutions) {
        check_same(what, level, of->states.data(), saved->data(), static_cast<int64_t>(saved->size() * sizeof(float)));
        ++saved;
      }
    }
  }

  std::vector<std::vector<char>> keys, values;
  std::vector<std::vector<float>> states;  // of each convolution
};

}  // namespace

void run_layers(Handle* handle, const char* level) {
  const Plan plan;
  const bool is_exact = !one_in(3);
  std::deque<Layer> layers;
  for (int64_t count = between(1, 2), i = 0; i < count; ++i) layers.emplace_back(plan, static_cast<int32_t>(i));
  std::vector<LayerSpec> specs;
  for (const Layer& layer : layers) specs.push_back(layer.spec);
  if (layers.size() > 1 && layers[0].has_router() && layers[1].has_router()) {
    specs[0].next_mixture = layers[1].spec.feed_forward;
  }
  const auto num_layers = static_cast<int64_t>(specs.size());
  const std::vector<float> given = normals(plan.tokens * plan.hidden);
  std::vector<Chunk> chunks;
  for (const Sequence& sequence : plan.sequences) chunks.push_back({&sequence, 0, sequence.num_tokens});

  const Caches before(layers);
  Step parts(plan, layers, chunks, given, is_exact);
  run_in_parts(handle, level, layers, parts);
  const Caches after(layers);

  before.put_back(layers);
  Step together(plan, layers, chunks, given, is_exact);
  run_all(handle, specs.data(), num_layers, together.call, 0);
  check_rows("layers in one call", level, layers, together, 0, parts, 0, plan.tokens);
  check_counts(level, layers, together);
  after.check_equal("caches of layers in one call", level, layers);

  before.put_back(layers);
  Step partial(plan, layers, chunks, given, is_exact);
  run_where_some_are_missing(handle, level, layers, specs.data(), partial);
  check_rows("layers with missing experts", level, layers, partial, 0, parts, 0, plan.tokens);
  after.check_equal("caches of layers with missing experts", level, layers);

  const auto has_changed_results = [](const LayerSpec& spec) { return spec.mixer_convolution || spec.mixer_residual_gate; };
  if (std::none_of(specs.begin(), specs.end(), has_changed_results)) {
    before.put_back(layers);
    Step apart(plan, layers, chunks, given, is_exact);
    run_mixers_apart(handle, layers, apart);
    check_rows("layers whose mixers run before", level, layers, apart, 0, parts, 0, plan.tokens);
    check_counts(level, layers, apart);
  }

  const auto run_alone = [&](const char* what, const Step& wanted, const Caches& caches, const Adapters* adapters) {
    before.put_back(layers);
    for (const Sequence& sequence : plan.sequences) {
      int64_t number = 0;
      for (int64_t first = 0, count; first < sequence.num_tokens; first += count) {
        count = between(1, sequence.num_tokens - first);
        const std::vector<Chunk> chunk = {{&sequence, first, count, number++}};
        Step alone(plan, layers, chunk, given, is_exact);
        Adapters::OfTokens of_tokens;
        if (adapters) {
          adapters->set(of_tokens, chunk, plan);
          alone.call.lora = &of_tokens.step;
        }
        run_all(handle, specs.data(), num_layers, alone.call, 0);
        check_rows(what, level, layers, alone, 0, wanted, sequence.first_row + first, count);
      }
      for (Layer& layer : layers) layer.settle(&sequence - plan.sequences.data(), number);
    }
    caches.check_equal(what, level, layers);
  };
  run_alone("tokens by themselves", parts, after, nullptr);

  before.put_back(layers);
  const Adapters adapters(plan, layers);
  Step adapted(plan, layers, chunks, given, is_exact);
  Adapters::OfTokens of_tokens;
  adapters.set(of_tokens, chunks, plan);
  adapted.call.lora = &of_tokens.step;
  run_all(handle, specs.data(), num_layers, adapted.call, 0);
  run_alone("tokens with adapters by themselves", adapted, Caches(layers), &adapters);
}

void run_head(Handle* handle, const char* level) {
  const int64_t hidden = between(1, 80), tokens = between(1, 20), num_rows = between(1, tokens);
  const Weights weights = trunk_weights(between(1, 150), hidden);
  const int64_t vocabulary = weights.layout.outputs;
  const std::vector<float> bias = normals(vocabulary), norm = normals(hidden, 0.3f, 1.0f);
  const std::vector<float> states = normals(tokens * hidden);
  std::vector<int32_t> rows(static_cast<size_t>(tokens));
  std::iota(rows.begin(), rows.end(), 0);
  std::shuffle(rows.begin(), rows.end(), random_bits);
  rows.resize(static_cast<size_t>(num_rows));
  rows.shrink_to_fit();
  PartMemory memory;
  LoraLayer end{};
  end.places[static_cast<int>(LoraPlace::kHead)] = memory.parts(vocabulary, hidden);
  const LoraLayer* layers = &end;
  std::vector<float> factors(static_cast<size_t>(tokens));
  for (float& factor : factors) factor = one_in(3) ? 0.0f : 0.7f;
  const LoraStep adapters{&layers, factors.data(), 1, 0, nullptr};
  HeadCall call{};
  call.lora = one_in(2) ? &adapters : nullptr;
  call.num_rows = num_rows;
  call.num_logits = between(0, num_rows);
  std::vector<float> normed(static_cast<size_t>(num_rows * hidden));
  call.vocabulary = one_in(2) ? vocabulary : between(1, vocabulary);
  std::vector<float> logits(static_cast<size_t>(call.num_logits * call.vocabulary));
  call.matrix = weights.matrix();
  call.bias = one_in(2) ? bias.data() : nullptr;
  call.norm = {norm.data(), nullptr, kEpsilon, one_in(2) ? NormKind::kRms : NormKind::kLayer};
  call.hidden = states.data();
  call.rows = rows.data();
  call.normed = normed.data();
  call.logits = logits.data();
  call.hidden_size = hidden;
  call.scale = one_in(2) ? 1.0f : 0.2f;
  call.softcap = one_in(2) ? 0.0f : 3.0f;
  call.is_exact = static_cast<int32_t>(between(0, 1));
  if (one_in(2)) {
    if (greenroom_head(handle, &call)) std::abort();
  } else {
    greenroom_start_head(handle, &call);
    if (greenroom_join(handle)) std::abort();
  }
  for (int64_t row = 0; row < num_rows; ++row) {
    const Vector x = driver::normed(call.norm, widened(states.data() + rows[static_cast<size_t>(row)] * hidden, hidden));
    check_vector("a last state", level, Format::kFloat32, normed.data() + row * hidden, x, kNear * largest(x));
    for (int64_t i = 0; row < call.num_logits && i < call.vocabulary; ++i) {
      double size, wanted = weights.sum(x.data(), i, &size);
      if (call.bias) wanted += bias[static_cast<size_t>(i)];
      double most = call.is_exact ? kExact * size : weights.rounding(x.data(), i);
      if (call.lora) {
        double magnitude = 0;
        wanted += factors[static_cast<size_t>(rows[static_cast<size_t>(row)])] * memory.sum(x.data(), i, &magnitude);
        most += kExact * magnitude;
      }
      wanted *= call.scale;
      if (call.softcap != 0.0f) wanted = call.softcap * std::tanh(wanted / call.softcap);
      check("a logit", level, weights.layout.format, logits[row * call.vocabulary + i], wanted, most + 1e-5);
    }
  }
}

}  // namespace driver
