# Only local: peers are shown what this site's own hosts offer. It then never stands between them
# and others, and does not even show that it could.
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
}
