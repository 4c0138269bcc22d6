#include "comm/launch/rendezvous.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <thread>
#include <utility>

#include "base/descriptor_limit.h"
#include "base/error.h"
#include "base/text.h"
#include "comm/launch/acceptor.h"
#include "comm/launch/job_key.h"
#include "comm/launch/peer_connector.h"
#include "comm/launch/roster.h"
#include "comm/transport/mailbox.h"

namespace agoq::comm {
namespace {

using nlohmann::json;
using std::chrono::seconds;

constexpr const char* kPurpose = "meet";
constexpr size_t kLongestRegistration = size_t{64} << 10;  // bytes
// What still comes, when it is clear that this will be no world: others should hear the same.
constexpr seconds kGrace{3};
// Ranks other than 0 are this much more patient, so that rank 0 can tell them who did not come.
constexpr seconds kSlack{10};
// For a handshake; who is at rank 0's place and has not answered by then is called again.
constexpr seconds kHandshake{10};
// As long another may be at rank 0's place before this rank gives up: a job that is just ending, say.
constexpr seconds kImpostor{3};

// What PeerConnector::connect() threw, or "".
std::string try_connect(PeerConnector connector, std::vector<FileDescriptor>& connections) {
  try {
    connections = connector.connect();
    return "";
  } catch (const std::exception& e) {
    return e.what();
  }
}

// Every rank is connected with every other, and rank 0 with each twice until all have met.
void require_descriptors(int world, int rank) {
  constexpr uint64_t kOthers = 64;  // of libraries and files
  const uint64_t needed = (rank == 0 ? 2 : 1) * static_cast<uint64_t>(world) + kOthers,
                 allowed = allow_descriptors(needed);
  require(
      allowed >= needed,
      "{} ranks need {} open files and sockets on rank {}, and this host allows {}: raise its hard limit (ulimit -Hn; "
      "nofile in limits.conf)",
      world, needed, rank, allowed);
}

// Rank 0, to whom all others come.
class RendezvousServer {
 public:
  RendezvousServer(const Launch& launch, const ConsistencyCheck& agreement, const RendezvousOptions& options)
      : launch_(launch), agreement_(agreement), options_(options), members_(static_cast<size_t>(launch.world)) {}

  std::vector<FileDescriptor> meet() {
    std::string trouble = gather();
    conclude(trouble);
    const Deadline deadline = Deadline::clock::now() + options_.timeout;
    Endpoints endpoints(0, launch_.master_addr, options_.local_sockets);
    const Roster roster = roster_with(endpoints.place());
    tell(as_json(roster), deadline);
    std::vector<FileDescriptor> connections;
    trouble = try_connect(PeerConnector(launch_, options_.key, std::move(endpoints), roster, deadline), connections);
    conclude(reports(trouble, deadline + kSlack));
    tell({{"go", true}}, Deadline::clock::now() + kSlack);
    return connections;
  }

 private:
  struct Member {
    FileDescriptor socket;
    Registration says;
  };

  // Until all have come. Returns what stands against a start, or "".
  std::string gather() {
    Acceptor acceptor(listen_tcp(launch_.master_port, launch_.master_addr),
                      {{options_.key, kPurpose}, 0, launch_.world, kLongestRegistration});
    Deadline deadline = Deadline::clock::now() + options_.timeout;
    std::vector<std::string> refused;
    while (!missing().empty()) {
      std::optional<Acceptor::AcceptedPeer> peer = acceptor.next(deadline);
      if (!peer) break;
      const std::string why = welcome(*peer);
      if (why.empty()) continue;
      if (refused.empty()) deadline = std::min(deadline, Deadline::clock::now() + kGrace);
      if (std::find(refused.begin(), refused.end(), why) == refused.end()) refused.push_back(why);
      turned_away_.push_back(std::move(peer->socket));
    }
    if (!refused.empty()) return join(refused, "; ");
    if (!missing().empty()) return absence(acceptor.turned_away());
    const std::string differ = agreement_differences();
    return differ.empty() ? "" : "the ranks differ where they must agree: " + differ;
  }

  std::string absence(const std::string& turned_away) const {
    return fmt::format("{} of {} did not come within {}: not started, or kept from {} port {}{}", ranks_text(missing()),
                       launch_.world, seconds_text(options_.timeout), launch_.master_addr, launch_.master_port,
                       turned_away.empty() ? "" : "; " + turned_away);
  }

  // Why not, or "": let in, or no rank at all.
  std::string welcome(Acceptor::AcceptedPeer& connection) {
    const auto [world, rank, to] = connection.claim;
    std::optional<Registration> says = registration_in(parse_json(connection.message));
    if (!says || rank == 0 || rank >= world) return "";
    if (world != members_.size())
      return fmt::format("rank {} was started as one of {}, but rank 0 as one of {}", rank, world, launch_.world);
    if (members_[rank].socket.valid())
      return fmt::format(
          "two processes say that they are rank {} of {}: of two jobs at one port, which AGOQ_MASTER_PORT keeps apart?",
          rank, world);
    const std::string address = peer_address(connection.socket);
    says->place.address = is_loopback(address) ? "" : address;
    members_[rank] = {std::move(connection.socket), std::move(*says)};
    return "";
  }

  std::vector<int> missing() const {
    std::vector<int> ranks;
    for (int rank = 1; rank < launch_.world; ++rank)
      if (!members_[static_cast<size_t>(rank)].socket.valid()) ranks.push_back(rank);
    return ranks;
  }

  std::string agreement_differences() const {
    std::vector<ConsistencyCheck> by_rank = {agreement_};
    for (size_t rank = 1; rank < members_.size(); ++rank) by_rank.push_back(members_[rank].says.agreement);
    return differences(by_rank);
  }

  Roster roster_with(const PeerAddress& own) const {
    Roster roster{hex(random_digest()), {own}};
    for (size_t rank = 1; rank < members_.size(); ++rank) roster.places.push_back(members_[rank].says.place);
    return roster;
  }

  // The cause of what stands against a start, or "": a rank that is gone; else the trouble of the highest rank, since
  // of a pair that is not connected the higher knows why, and the lower only that nobody has called.
  std::string reports(const std::string& own, Deadline deadline) const {
    std::string cause = own;
    for (size_t rank = 1; rank < members_.size(); ++rank) {
      const json says = receive_json(members_[rank].socket, deadline);
      if (!says.is_object()) return fmt::format("rank {} is gone: it left while the ranks connected", rank);
      if (const std::string trouble = trouble_in(says); !trouble.empty()) cause = trouble;
    }
    return cause;
  }

  void conclude(const std::string& trouble) {
    if (trouble.empty()) return;
    const json message = {{"trouble", trouble}};
    const Deadline deadline = Deadline::clock::now() + kSlack;
    tell(message, deadline);
    for (const FileDescriptor& socket : turned_away_) send_json(socket, message, deadline);
    fail("{}", trouble);
  }

  void tell(const json& message, Deadline deadline) const {
    for (const Member& member : members_)
      if (member.socket.valid()) send_json(member.socket, message, deadline);
  }

  const Launch& launch_;
  const ConsistencyCheck& agreement_;
  RendezvousOptions options_;
  std::vector<Member> members_;  // by rank
  std::vector<FileDescriptor> turned_away_;
};

// Any other rank.
class RendezvousClient {
 public:
  RendezvousClient(const Launch& launch, const ConsistencyCheck& agreement, const RendezvousOptions& options)
      : launch_(launch),
        agreement_(agreement),
        options_(options),
        endpoints_(launch.rank, launch.master_addr, options.local_sockets) {}

  std::vector<FileDescriptor> meet() {
    Roster roster = present();
    const std::string master = peer_address(control_);
    for (PeerAddress& place : roster.places)
      if (place.address.empty()) place.address = master;
    std::vector<FileDescriptor> connections;
    const Deadline deadline = Deadline::clock::now() + options_.timeout;
    const std::string trouble = try_connect(
        PeerConnector(launch_, options_.key, std::move(endpoints_), std::move(roster), deadline), connections);
    send_json(control_, {{"trouble", trouble}}, deadline + kSlack);
    const json says = receive_json(control_, deadline + 2 * kSlack);  // rank 0 waits for all reports
    require(says.is_object(), "rank 0 is gone: it left while the ranks connected");
    require(says.contains("go"), "{}", trouble_in(says));
    return connections;
  }

 private:
  // To rank 0 as soon as it is there. Who does not have the key, or does not answer in our language, is not rank 0.
  Roster present() {
    const Deadline deadline = Deadline::clock::now() + options_.timeout;
    WrongServer wrong(kImpostor);
    error_ = "no answer";
    for (auto pause = std::chrono::milliseconds(20); Deadline::clock::now() < deadline;
         pause = std::min(pause * 2, std::chrono::milliseconds(500))) {
      const HandshakeResult result = call(deadline);
      if (result == HandshakeResult::Known)
        if (std::optional<Roster> roster = send_registration(deadline)) return std::move(*roster);
      if (wrong.stays(result, Deadline::clock::now())) fail_at(result);
      std::this_thread::sleep_for(pause);
    }
    fail(
        "rank {} found no rank 0 at {} port {} within {}: {}. AGOQ_MASTER_ADDR names its host, AGOQ_MASTER_PORT a port "
        "that firewalls let in",
        launch_.rank, launch_.master_addr, launch_.master_port, seconds_text(options_.timeout), error_);
  }

  HandshakeResult call(Deadline deadline) {
    control_ = connect_tcp(launch_.master_addr, launch_.master_port, deadline, error_);
    if (!control_.valid()) return HandshakeResult::NoAnswer;
    const Claim claim{static_cast<uint32_t>(launch_.world), static_cast<uint32_t>(launch_.rank), 0};
    const HandshakeResult result =
        shake_hands(control_, {options_.key, kPurpose}, claim, std::min(deadline, Deadline::clock::now() + kHandshake));
    error_ = text_of(result);
    return result;
  }

  // None: rank 0 has closed, or its answer makes no sense. Throws if it tells why there will be no start.
  std::optional<Roster> send_registration(Deadline deadline) {
    error_ = "it closed the connection without an answer";
    if (!send_json(control_, as_json(Registration{endpoints_.place(), agreement_}), deadline)) return std::nullopt;
    const json says = receive_json(control_, deadline + kSlack);
    require(trouble_in(says).empty(), "{}", trouble_in(says));
    return roster_in(says, launch_.world);
  }

  [[noreturn]] void fail_at(HandshakeResult result) const {
    fail(
        "rank {} cannot join rank 0 at {} port {}: {}. {}", launch_.rank, launch_.master_addr, launch_.master_port,
        text_of(result),
        result == HandshakeResult::OtherKey
            ? "Another job's rank 0 is there (AGOQ_MASTER_PORT keeps jobs apart), or the secret is not the same on all "
              "hosts. " +
                  secret_remedy()
            : "All ranks run the same build");
  }

  const Launch& launch_;
  const ConsistencyCheck& agreement_;
  RendezvousOptions options_;
  Endpoints endpoints_;
  FileDescriptor control_;
  std::string error_;
};

}  // namespace

bool WrongServer::stays(HandshakeResult result, Deadline now) {
  if (result != HandshakeResult::OtherKey && result != HandshakeResult::OtherProtocol) {
    since_ = Deadline::max();
    return false;
  }
  since_ = std::min(since_, now);
  return now - since_ >= limit_;
}

std::vector<FileDescriptor> meet(const Launch& launch, const ConsistencyCheck& agreement,
                                 const RendezvousOptions& options) {
  if (launch.world == 1) return std::vector<FileDescriptor>(1);
  require(launch.master_port > 0, "{} ranks need a port to meet at: set AGOQ_MASTER_PORT, the same for all",
          launch.world);
  require_descriptors(launch.world, launch.rank);
  if (launch.rank == 0) return RendezvousServer(launch, agreement, options).meet();
  return RendezvousClient(launch, agreement, options).meet();
}

}  // namespace agoq::comm
