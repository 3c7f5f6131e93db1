# Own offers, and those of preferred partners: `sojourn peer set PEER --mark partner`.
#
# Copy it to policies/expose.rego of the state folder.
package sojourn.expose

import rego.v1

import data.sojourn.defaults.expose as usual

# No more than usual are shown.
hide contains i if some i in usual.hide

hide contains i if {
	some i, offer in input.offers
	offer.via != null
	not "partner" in offer.peering.marks
}
