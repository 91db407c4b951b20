"""Claims about a circuit that anybody can check without searching: `acdc.certify` and `acdc.verify`."""
