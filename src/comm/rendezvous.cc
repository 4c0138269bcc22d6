#include "comm/rendezvous.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>
#include <utility>

#include "base/error.h"
#include "base/text.h"
#include "comm/mailbox.h"

namespace agoq::comm {
namespace {

using nlohmann::json;

constexpr int kProtocol = 1;
// What still comes, when it is clear that this will be no world: others should hear the same.
constexpr auto kGrace = std::chrono::seconds(3);
// Ranks other than 0 are this much more patient, so that rank 0 can tell them who did not come.
constexpr auto kSlack = std::chrono::seconds(10);

std::string random_name() {
  std::random_device random;
  return fmt::format("{:08x}{:08x}{:08x}", random(), random(), random());
}

json as_json(const Agreement& agreement) {
  json list = json::array();
  for (const Agreed& item : agreement) list.push_back({item.name, item.value});
  return list;
}

Agreement as_agreement(const json& list) {
  Agreement items;
  for (const json& item : list) items.push_back({item.at(0), item.at(1)});
  return items;
}

// Where a rank can be found. An empty address is that of rank 0, as each rank has reached it.
struct Place {
  std::string host, address, name;
  int port = 0;

  json text() const { return {{"host", host}, {"address", address}, {"name", name}, {"port", port}}; }
  static Place of(const json& text) {
    return {text.at("host"), text.value("address", ""), text.at("name"), text.at("port")};
  }
};

// This rank's open doors.
struct Doors {
  Doors(const Launch& launch, const Meeting& meeting)
      : name("agoq-" + random_name()), host(meeting.local_sockets ? this_host() : name) {
    listeners.push_back(listen_tcp(0, is_loopback(launch.master_addr)));
    listeners.push_back(listen_local(name));
  }
  Place place() const { return {host, "", name, port_of(listeners.front())}; }

  std::string name, host;
  std::vector<FileDescriptor> listeners;
};

struct Roster {
  std::string token;  // of this run: who has it belongs here
  std::vector<Place> places;
};

Roster roster_of(const json& text) {
  Roster roster{text.at("token"), {}};
  for (const json& place : text.at("ranks")) roster.places.push_back(Place::of(place));
  return roster;
}

// Every pair is connected by its higher rank. Throws with what this rank sees.
class Mesh {
 public:
  Mesh(const Launch& launch, Doors doors, Roster roster, Deadline deadline)
      : launch_(launch), reception_(std::move(doors.listeners)), roster_(std::move(roster)), deadline_(deadline) {
    connections_.resize(static_cast<size_t>(launch.world));
  }

  std::vector<FileDescriptor> connect() {
    for (int other = 0; other < launch_.rank; ++other) call(other);
    for (int expected = launch_.world - 1 - launch_.rank; expected > 0; --expected) answer();
    return std::move(connections_);
  }

 private:
  const Place& place(int rank) const { return roster_.places[static_cast<size_t>(rank)]; }

  void call(int other) {
    const Place& there = place(other);
    std::string error;
    FileDescriptor socket = there.host == place(launch_.rank).host
                                ? connect_local(there.name, error)
                                : connect_tcp(there.address, there.port, deadline_, error);
    require(socket.valid() && send_json(socket, {{"token", roster_.token}, {"rank", launch_.rank}}, deadline_),
            "rank {} cannot connect to rank {} at {} port {}: {}; hosts must let each other's connections in, on the "
            "network of rank 0's address (AGOQ_MASTER_ADDR)",
            launch_.rank, other, there.address, there.port, error);
    connections_[static_cast<size_t>(other)] = std::move(socket);
  }

  void answer() {
    while (true) {
      std::optional<Reception::Guest> guest = reception_.next(deadline_);
      require(guest.has_value(), "{} did not connect to rank {}", ranks_text(missing()), launch_.rank);
      const json says = json::parse(guest->presents, nullptr, false);
      if (!says.is_object() || says.value("token", "") != roster_.token) continue;
      connections_.at(says.at("rank").get<size_t>()) = std::move(guest->socket);
      return;
    }
  }

  std::vector<int> missing() const {
    std::vector<int> ranks;
    for (int other = launch_.rank + 1; other < launch_.world; ++other)
      if (!connections_[static_cast<size_t>(other)].valid()) ranks.push_back(other);
    return ranks;
  }

  const Launch& launch_;
  Reception reception_;
  Roster roster_;
  Deadline deadline_;
  std::vector<FileDescriptor> connections_;
};

// What Mesh::connect() threw, or "".
std::string try_connect(Mesh mesh, std::vector<FileDescriptor>& connections) {
  try {
    connections = mesh.connect();
    return "";
  } catch (const std::exception& e) {
    return e.what();
  }
}

// Rank 0, to whom all others come.
class Host {
 public:
  Host(const Launch& launch, const Agreement& agreement, const Meeting& meeting)
      : launch_(launch), agreement_(agreement), meeting_(meeting), guests_(static_cast<size_t>(launch.world)) {}

  std::vector<FileDescriptor> meet() {
    std::string trouble = gather();
    conclude(trouble);
    const Deadline deadline = Deadline::clock::now() + meeting_.timeout;
    Doors doors(launch_, meeting_);
    tell(roster_text(doors.place()), deadline);
    std::vector<FileDescriptor> connections;
    trouble = try_connect(Mesh(launch_, std::move(doors), {token_, std::vector<Place>(guests_.size())}, deadline),
                          connections);
    conclude(reports(trouble, deadline + kSlack));
    tell({{"go", true}}, Deadline::clock::now() + kSlack);
    return connections;
  }

 private:
  struct Guest {
    FileDescriptor socket;
    Place place;
    Agreement agreement;
  };

  // Until all have come. Returns what stands against a start, or "".
  std::string gather() {
    std::vector<FileDescriptor> listeners;
    listeners.push_back(listen_tcp(launch_.master_port, is_loopback(launch_.master_addr)));
    Reception reception(std::move(listeners));
    Deadline deadline = Deadline::clock::now() + meeting_.timeout;
    std::vector<std::string> refused;
    while (!missing().empty()) {
      std::optional<Reception::Guest> guest = reception.next(deadline);
      if (!guest) break;
      const std::string why = welcome(*guest);
      if (why.empty()) continue;
      if (refused.empty()) deadline = std::min(deadline, Deadline::clock::now() + kGrace);
      if (std::find(refused.begin(), refused.end(), why) == refused.end()) refused.push_back(why);
      turned_away_.push_back(std::move(guest->socket));
    }
    if (!refused.empty()) return join(refused, "; ");
    if (!missing().empty())
      return fmt::format("{} of {} did not come within {}: not started, or kept from {} port {}", ranks_text(missing()),
                         launch_.world, seconds_text(meeting_.timeout), launch_.master_addr, launch_.master_port);
    const std::string differ = agreement_differences();
    return differ.empty() ? "" : "the ranks differ where they must agree: " + differ;
  }

  // Why not, or "".
  std::string welcome(Reception::Guest& visitor) {
    const json says = json::parse(visitor.presents, nullptr, false);
    if (!says.is_object()) return "";
    const int protocol = says.value("protocol", 0), world = says.value("world", 0), rank = says.value("rank", 0);
    if (protocol != kProtocol)
      return fmt::format("rank {} speaks version {} of the protocol and rank 0 version {}: they are different builds",
                         rank, protocol, kProtocol);
    if (world != launch_.world)
      return fmt::format("rank {} was started as one of {}, but rank 0 as one of {}", rank, world, launch_.world);
    if (rank <= 0 || rank >= world || guests_[static_cast<size_t>(rank)].socket.valid())
      return fmt::format(
          "two processes say that they are rank {} of {}: of two jobs at one port, which AGOQ_MASTER_PORT keeps apart?",
          rank, world);
    Place place = Place::of(says.at("place"));
    const std::string address = peer_address(visitor.socket);
    place.address = is_loopback(address) ? "" : address;
    guests_[static_cast<size_t>(rank)] = {std::move(visitor.socket), place, as_agreement(says.at("agreement"))};
    return "";
  }

  std::vector<int> missing() const {
    std::vector<int> ranks;
    for (int rank = 1; rank < launch_.world; ++rank)
      if (!guests_[static_cast<size_t>(rank)].socket.valid()) ranks.push_back(rank);
    return ranks;
  }

  std::string agreement_differences() const {
    std::vector<Agreement> by_rank = {agreement_};
    for (size_t rank = 1; rank < guests_.size(); ++rank) by_rank.push_back(guests_[rank].agreement);
    return differences(by_rank);
  }

  json roster_text(const Place& own) const {
    json places = json::array({own.text()});
    for (size_t rank = 1; rank < guests_.size(); ++rank) places.push_back(guests_[rank].place.text());
    return {{"token", token_}, {"ranks", places}};
  }

  // The cause of what stands against a start, or "": a rank that is gone; else the trouble of the highest rank, since
  // of a pair that is not connected the higher knows why, and the lower only that nobody has called.
  std::string reports(const std::string& own, Deadline deadline) const {
    std::string cause = own;
    for (size_t rank = 1; rank < guests_.size(); ++rank) {
      const json says = receive_json(guests_[rank].socket, deadline);
      if (!says.is_object()) return fmt::format("rank {} is gone: it left while the ranks connected", rank);
      if (const std::string trouble = says.value("trouble", ""); !trouble.empty()) cause = trouble;
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
    for (const Guest& guest : guests_)
      if (guest.socket.valid()) send_json(guest.socket, message, deadline);
  }

  const Launch& launch_;
  const Agreement& agreement_;
  Meeting meeting_;
  std::string token_ = random_name();
  std::vector<Guest> guests_;  // by rank
  std::vector<FileDescriptor> turned_away_;
};

// Any other rank.
class Visitor {
 public:
  Visitor(const Launch& launch, const Agreement& agreement, const Meeting& meeting)
      : launch_(launch), agreement_(agreement), meeting_(meeting), doors_(launch, meeting) {}

  std::vector<FileDescriptor> meet() {
    Roster roster = present();
    const std::string master = peer_address(control_);
    for (Place& place : roster.places)
      if (place.address.empty()) place.address = master;
    std::vector<FileDescriptor> connections;
    const Deadline deadline = Deadline::clock::now() + meeting_.timeout;
    const std::string trouble = try_connect(Mesh(launch_, std::move(doors_), std::move(roster), deadline), connections);
    send_json(control_, {{"trouble", trouble}}, deadline + kSlack);
    const json says = receive_json(control_, deadline + 2 * kSlack);  // rank 0 waits for all reports
    require(says.is_object(), "rank 0 is gone: it left while the ranks connected");
    require(says.contains("go"), "{}", says.value("trouble", ""));
    return connections;
  }

 private:
  json introduction() const {
    return {{"protocol", kProtocol},
            {"world", launch_.world},
            {"rank", launch_.rank},
            {"place", doors_.place().text()},
            {"agreement", as_json(agreement_)}};
  }

  // To rank 0 as soon as it is there. A server that does not answer in our language is not rank 0.
  Roster present() {
    const Deadline deadline = Deadline::clock::now() + meeting_.timeout;
    std::string error = "no answer";
    for (auto pause = std::chrono::milliseconds(20); Deadline::clock::now() < deadline;
         pause = std::min(pause * 2, std::chrono::milliseconds(500))) {
      control_ = connect_tcp(launch_.master_addr, launch_.master_port, deadline, error);
      if (control_.valid() && send_json(control_, introduction(), deadline)) {
        const json says = receive_json(control_, deadline + kSlack);
        require(!says.is_object() || !says.contains("trouble"), "{}",
                says.is_object() ? says.value("trouble", "") : "");
        if (says.is_object()) return roster_of(says);
        error = "it closed the connection without an answer";
      }
      std::this_thread::sleep_for(pause);
    }
    fail(
        "rank {} found no rank 0 at {} port {} within {}: {}. AGOQ_MASTER_ADDR names its host, AGOQ_MASTER_PORT a port "
        "that firewalls let in",
        launch_.rank, launch_.master_addr, launch_.master_port, seconds_text(meeting_.timeout), error);
  }

  const Launch& launch_;
  const Agreement& agreement_;
  Meeting meeting_;
  Doors doors_;
  FileDescriptor control_;
};

}  // namespace

std::vector<FileDescriptor> meet(const Launch& launch, const Agreement& agreement, const Meeting& meeting) {
  if (launch.world == 1) return std::vector<FileDescriptor>(1);
  require(launch.master_port > 0, "{} ranks need a port to meet at: set AGOQ_MASTER_PORT, the same for all",
          launch.world);
  if (launch.rank == 0) return Host(launch, agreement, meeting).meet();
  return Visitor(launch, agreement, meeting).meet();
}

}  // namespace agoq::comm
