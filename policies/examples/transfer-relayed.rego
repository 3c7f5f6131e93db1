# Relayed, unless it is among friends: files of VMs that pass this site's name go through its own
# transfer proxy too, so that neither side learns the other's address. Within the own domain
# (`sojourn peer set PEER --mark own-domain`) they move directly, which is faster.
#
# Copy it to policies/transfer.rego of the state folder.
package sojourn.transfer

import rego.v1

default mode := "relayed"

# Two ends that cannot dial each other meet here all the same.
mode := "direct" if {
	"own-domain" in input.peering.marks
	not input.must_meet
}
