#include "comm/launch/roster.h"

#include <fmt/format.h>

#include <utility>

#include "comm/launch/keyed_hash.h"
#include "comm/transport/sockets.h"

namespace agoq::comm {
namespace {

using nlohmann::json;

constexpr size_t kLongestName = 90;  // of a local socket

std::optional<std::string> string_at(const json& object, const char* key) {
  const auto at = object.find(key);
  if (at == object.end() || !at->is_string()) return std::nullopt;
  return at->get<std::string>();
}

std::optional<int> port_at(const json& object) {
  const auto at = object.find("port");
  if (at == object.end() || !at->is_number_unsigned()) return std::nullopt;
  const auto port = at->get<uint64_t>();
  if (port == 0 || port >= 1 << 16) return std::nullopt;
  return static_cast<int>(port);
}

json as_json(const PeerAddress& place) {
  return {{"host", place.host}, {"address", place.address}, {"name", place.name}, {"port", place.port}};
}

std::optional<PeerAddress> place_in(const json& object) {
  if (!object.is_object()) return std::nullopt;
  const auto host = string_at(object, "host"), address = string_at(object, "address"), name = string_at(object, "name");
  const auto port = port_at(object);
  if (!host || !address || !name || !port || name->size() > kLongestName) return std::nullopt;
  return PeerAddress{*host, *address, *name, *port};
}

std::optional<ConsistencyCheck> agreement_in(const json& list) {
  if (!list.is_array()) return std::nullopt;
  ConsistencyCheck items;
  for (const json& item : list) {
    if (!item.is_array() || item.size() != 2 || !item[0].is_string() || !item[1].is_string()) return std::nullopt;
    items.push_back({item[0], item[1]});
  }
  return items;
}

}  // namespace

// With the rank in its name: on a machine that was restored from the same snapshot as this one and has drawn the same
// random numbers, a rank does not find itself in place of another.
Endpoints::Endpoints(int rank, const std::string& master_addr, bool local_sockets)
    : name(fmt::format("agoq-{}-{}", rank, hex(random_digest()).substr(0, 32))),
      host(local_sockets ? this_host() : name),
      listeners(listen_tcp(0, master_addr)) {
  listeners.push_back(listen_local(name));
}

PeerAddress Endpoints::place() const {
  return {host, "", name, port_of(listeners.front())};
}

json as_json(const Registration& registration) {
  json agreement = json::array();
  for (const CheckedItem& item : registration.agreement) agreement.push_back({item.name, item.value});
  return {{"place", as_json(registration.place)}, {"agreement", agreement}};
}

json as_json(const Roster& roster) {
  json places = json::array();
  for (const PeerAddress& place : roster.places) places.push_back(as_json(place));
  return {{"token", roster.token}, {"ranks", places}};
}

std::optional<Registration> registration_in(const json& message) {
  if (!message.is_object() || !message.contains("place") || !message.contains("agreement")) return std::nullopt;
  std::optional<PeerAddress> place = place_in(message["place"]);
  std::optional<ConsistencyCheck> agreement = agreement_in(message["agreement"]);
  if (!place || !agreement) return std::nullopt;
  return Registration{std::move(*place), std::move(*agreement)};
}

std::optional<Roster> roster_in(const json& message, int world) {
  if (!message.is_object() || !message.contains("ranks")) return std::nullopt;
  const std::optional<std::string> token = string_at(message, "token");
  const json& ranks = message["ranks"];
  if (!token || !ranks.is_array() || ranks.size() != static_cast<size_t>(world)) return std::nullopt;
  Roster roster{*token, {}};
  for (const json& rank : ranks) {
    std::optional<PeerAddress> place = place_in(rank);
    if (!place) return std::nullopt;
    roster.places.push_back(std::move(*place));
  }
  return roster;
}

std::string trouble_in(const json& message) {
  return message.is_object() ? string_at(message, "trouble").value_or("") : "";
}

}  // namespace agoq::comm
