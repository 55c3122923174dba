// Package names makes up names for containers that were given none: an adjective and a thing of
// harbours.
package names

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"strings"
)

// ID is a new container id: 64 hexadecimal digits. The first twelve are never all digits, since a host
// name made of them would look like a number.
func ID() string {
	for {
		var b [32]byte
		_, _ = rand.Read(b[:]) // it cannot fail (crypto/rand, Go 1.24)
		if id := hex.EncodeToString(b[:]); strings.ContainsAny(id[:12], "abcdef") {
			return id
		}
	}
}

// Random is a new name, adjective_noun. After a few that were taken it gets a number.
func Random(attempt int) string {
	var b [6]byte
	_, _ = rand.Read(b[:])
	name := left[int(binary.LittleEndian.Uint16(b[:]))%len(left)] + "_" + right[int(binary.LittleEndian.Uint16(b[2:]))%len(right)]
	if attempt >= 3 {
		name += "_" + hex.EncodeToString(b[4:])
	}
	return name
}

var left = strings.Fields(`able amber ample ancient apt arctic ardent azure balmy bold brave breezy bright brisk broad calm
candid careful cheery civil clear clever coastal cobalt cool coral cosy crisp curious daring dauntless dear deft diligent
distant dry eager early earnest easy electric elegant even exact fair faithful famous fast fearless fine firm fleet fluent
fond frank free fresh friendly frosty gallant generous gentle glad golden good grand grateful handy happy hardy hearty
helpful high honest humble ideal jolly jovial just keen kind large lasting lean light lively local loyal lucid lucky lunar
magic major marine mellow merry mighty mild modest moral native nautic neat nimble noble northern novel open orderly patient
peaceful placid plain pleasant polar polite prime proud prudent punctual quick quiet radiant rapid rare ready regal robust
roving royal salty serene sharp shiny silent silver simple sincere sleek smart smooth snug sober solid sound southern
sparkling spirited spry stable steady stellar stout strong sturdy sunny sure swift tidal tidy tireless tough tranquil trim
true trusty upbeat useful valiant vast vivid warm watchful western whole wise witty worthy young zesty`)

var right = strings.Fields(`albatross anchor barge barnacle barque basin bay beacon berth boatswain bollard boom bosun
bowline bow breaker breakwater brig buoy cabin cable canal canvas capstan captain caravel cargo cask castaway catamaran
channel chart clipper coast cockle cod compass coral cormorant coxswain crab crane crate crew current cutter davit deck
dhow dinghy dock dolphin dory draft dredger drifter ebb eel estuary fathom fender ferry fjord fleet flotilla frigate
galleon galley gangway gannet gull gunwale gust halyard harbour hatch haven hawser heron herring hold hook hull inlet jetty
jib kayak keel ketch knot lagoon lantern lateen ledger lifeboat lighter lighthouse limpet liner lobster lock log longboat
lugger mainsail manifest mariner marina marlin mast mate mole moor mussel narwhal navigator oar osprey otter outrigger
oyster packet paddle pelican pier pilot pinnace plank plover porpoise port porthole prow pulley quay raft ray reef rigging
rope rudder sail salmon schooner scow sculler seal sextant shanty shark ship shoal shore shrimp signal skiff skipper sloop
sole spar spinnaker sprat squid stanchion starboard stern steward stowage strait strand sturgeon surf swell tackle tanker
tender tern tide tiller timber towline trawler trident trimaran tug tuna turbot turtle vane vessel voyage walrus warden
watch wave weir whaler wharf wherry winch windlass yacht yard yawl`)
