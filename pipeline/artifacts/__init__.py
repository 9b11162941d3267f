"""The artifact store: manifests, leases, garbage collection, and the places that a store can lie in."""
