#include "train/resume.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <vector>

#include "base/error.h"
#include "train/config/settings.h"

namespace agoq::train {

void require_same_run(const std::string& path, const RunMetadata& metadata, const TrainConfig& config,
                      const Dataset& data, const std::string& identity, const std::string& vocabulary) {
  const auto beginning = [](const std::string& finetune) {
    return finetune.empty() ? "without --finetune" : "with --finetune " + finetune;
  };
  const std::string& then = metadata.settings.finetune;
  require(then == config.finetune,
          "the run of {} began {}, and this command begins {}: to continue that run, {}; or give another --save", path,
          beginning(then), beginning(config.finetune),
          then.empty() ? "leave --finetune out" : "pass the same value: --finetune " + then);
  const std::vector<std::string> changed = differences(with_whole_contents(metadata.identity, data), identity);
  require(changed.empty(),
          "{} is another run's; what differs:\n  {}\nUse the same settings, or another --save folder; with that, "
          "--finetune {} begins with these weights",
          path, fmt::join(changed, "\n  "), config.save);
  require(metadata.vocabulary.empty() || vocabulary.empty() || metadata.vocabulary == vocabulary,
          "{} has learned tokens of {} (vocabulary {}), and these are tokens of {} (vocabulary {}): go on with the "
          "tokenizer that it began with",
          path, metadata.settings.tokenizer, metadata.vocabulary, config.tokenizer, vocabulary);
}

bool keep_fitted_schedule(TrainConfig& config, const RunMetadata& metadata) {
  const TrainConfig& then = metadata.settings;
  const bool asked_the_same = config.train_iters == metadata.iters_before_fit || config.train_iters == then.train_iters;
  if (metadata.iters_before_fit == 0 || config.train_minutes != then.train_minutes || !asked_the_same) return false;
  config.train_iters = then.train_iters;
  config.lr_warmup_iters = then.lr_warmup_iters;
  config.lr_decay_iters = then.lr_decay_iters;
  return true;
}

std::string keep_decay(TrainConfig& config, const TrainConfig& begun) {
  config.lr_decay_iters = begun.lr_decay_iters;
  require(
      config.lr_warmup_iters <= config.lr_decay_iters,
      "--lr-warmup-iters {} lies behind the end of the decay that the run began with, step {}; give --lr-decay-iters",
      config.lr_warmup_iters, config.lr_decay_iters);
  if (config.train_iters <= config.lr_decay_iters || config.lr_decay_style == "constant") return {};
  return fmt::format(
      "the learning rate decays to {} at step {}, as the run began, and stays there{}; --lr-decay-iters {} "
      "would stretch the decay",
      config.min_lr, config.lr_decay_iters, config.min_lr == 0 ? ", so that later steps learn nothing" : "",
      config.train_iters);
}

}  // namespace agoq::train
