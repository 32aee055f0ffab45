# Installs libdinoreg and libdinoreg_host with the files by which other projects find them: in an
# install prefix, in this build tree, or in the package of a wheel, whose folder is a prefix of its
# own. All of these may be moved.
include(CMakePackageConfigHelpers)
include(GNUInstallDirs)

if(SKBUILD)
  set(DINOREG_PYTHON_PACKAGE dinoreg_kernels CACHE STRING "The package that holds libdinoreg")
  set(libdir ${DINOREG_PYTHON_PACKAGE})
  set(includedir ${libdir}/include)
  set(cmakedir ${libdir}/cmake)
  set(pkgconfigdir ${libdir}/pkgconfig)
  set(namelink NAMELINK_SKIP)
  set(docdir ${libdir})
else()
  set(libdir ${CMAKE_INSTALL_LIBDIR})
  set(includedir ${CMAKE_INSTALL_INCLUDEDIR})
  set(cmakedir ${libdir}/cmake/dinoreg)
  set(pkgconfigdir ${libdir}/pkgconfig)
  set(namelink "")
  set(docdir ${CMAKE_INSTALL_DOCDIR})
endif()

install(TARGETS dinoreg dinoreg_host EXPORT dinoreg
  LIBRARY DESTINATION ${libdir} ${namelink}
  INCLUDES DESTINATION ${includedir})
install(FILES LICENSE DESTINATION ${docdir})
set(host ${CMAKE_CURRENT_SOURCE_DIR}/runtime/host/include)
install(FILES
  ${kernels}/include/dinoreg.h ${kernels}/include/dinoreg.hpp
  ${host}/dinoreg_host.h ${host}/dinoreg_host.hpp ${host}/itkDinoregImageFilter.h
  DESTINATION ${includedir})

# find_package(dinoreg CONFIG) defines dinoreg::dinoreg and dinoreg::dinoreg_host.
set(config ${CMAKE_CURRENT_BINARY_DIR}/dinoregConfig.cmake)
set(version_file ${CMAKE_CURRENT_BINARY_DIR}/dinoregConfigVersion.cmake)
file(WRITE ${config} "include(\${CMAKE_CURRENT_LIST_DIR}/dinoregTargets.cmake)\n")
write_basic_package_version_file(${version_file} COMPATIBILITY SameMajorVersion)
export(EXPORT dinoreg NAMESPACE dinoreg:: FILE ${CMAKE_CURRENT_BINARY_DIR}/dinoregTargets.cmake)
install(EXPORT dinoreg NAMESPACE dinoreg:: FILE dinoregTargets.cmake
  DESTINATION ${cmakedir})
install(FILES ${config} ${version_file} DESTINATION ${cmakedir})

# pkg-config dinoreg, dinoreg_host
file(RELATIVE_PATH up /prefix/${pkgconfigdir} /prefix)
function(add_pkg_config target description)
  set(file ${CMAKE_CURRENT_BINARY_DIR}/${target}.pc)
  if(SKBUILD)
    # A wheel holds no symbolic links, so that a linker does not find the library by its short name.
    set(libs "\${libdir}/$<TARGET_SONAME_FILE_NAME:${target}> -Wl,-rpath,\${libdir}")
  else()
    set(libs "-L\${libdir} -l${target}")
  endif()
  file(GENERATE OUTPUT ${file} CONTENT "\
prefix=\${pcfiledir}/${up}
libdir=\${prefix}/${libdir}
includedir=\${prefix}/${includedir}

Name: ${target}
Description: ${description}
Version: ${PROJECT_VERSION}
Cflags: -I\${includedir}
Libs: ${libs}
")
  install(FILES ${file} DESTINATION ${pkgconfigdir})
endfunction()
add_pkg_config(dinoreg "${PROJECT_DESCRIPTION}")
add_pkg_config(dinoreg_host "Registration of 3D medical images in one call, by the package dinoreg-rt")
