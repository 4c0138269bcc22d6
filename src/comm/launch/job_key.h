// By what the ranks of a job know each other: a key that each makes of the job's secret, which never travels.
#pragma once

#include <string>

#include "comm/launch/keyed_hash.h"
#include "comm/launch/launch.h"

namespace agoq::comm {

inline constexpr std::string_view kNoSecret = "no secret";

// HMAC(secret, the launcher's id of the job). The default is known to everybody: for tests and trusted networks.
struct JobKey {
  Digest bytes{};
  std::string source{kNoSecret};  // where the secret comes from: for messages
};

// The secret is, of these, the first that there is:
//   AGOQ_JOB_SECRET                   at least 16 characters, the same for all ranks
//   $XDG_CONFIG_HOME/agoq/job-secret  else $HOME/.config/agoq/job-secret: for all hosts that share this folder. The
//                                     first rank that finds no file makes it, with mode 0600
//   TEMPORARY/agoq-UID/job-secret     likewise, if all ranks run on this host and the user's folder cannot keep a
//                                     secret: there is none, it cannot be written, or others can read what is in it
// Throws if there is none, with the line that brings one, or if others than the user can read the file. `open`: without
// AGOQ_JOB_SECRET everybody may take part.
JobKey find_job_key(const Launch& launch, bool open, const Lookup& environment, const std::string& temporary);
JobKey find_job_key(const Launch& launch, bool open);  // in this process's environment, and /tmp

// What to do about a secret that is missing or not the same everywhere: the end of an error message.
std::string secret_remedy();

}  // namespace agoq::comm
