# Whether to pass a Migration request on to one of this site's peers.
#
# input:  model::decision::Delegate
# refuse: every reason against it; an empty set delegates
package sojourn.delegate

import rego.v1

refuse contains "the request may pass no further site" if input.hops_left == 0

# The restriction binds the sites that were asked. The site whose users ask is not one of them.
refuse contains "the VM's owner allows no delegation" if {
	input.descriptor.restrictions.no_delegation
	input.peer != null
}
