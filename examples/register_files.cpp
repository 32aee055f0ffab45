/* Registers two image files with ITK's readers and writers, and writes the warped image and the
 * displacement field.
 *
 *   register_files FIXED MOVING WARPED FIELD [PYTHON]
 *   register_files fixed.nii.gz moving.nii.gz warped.nii.gz field.nii.gz .venv/bin/python
 *
 * CMakeLists.txt of such a program (C++20):
 *
 *   project(register_files LANGUAGES C CXX)
 *   find_package(ITK REQUIRED COMPONENTS ITKCommon ITKIONIFTI ITKDisplacementField)
 *   include(${ITK_USE_FILE})
 *   find_package(dinoreg CONFIG REQUIRED)
 *   add_executable(register_files register_files.cpp)
 *   target_link_libraries(register_files dinoreg::dinoreg_host ${ITK_LIBRARIES})
 */
#include <iostream>

#include "itkDinoregImageFilter.h"
#include "itkImageFileReader.h"
#include "itkImageFileWriter.h"

int main(int count, char** arguments) {
  if (count < 5) {
    std::cerr << "usage: " << arguments[0] << " FIXED MOVING WARPED FIELD [PYTHON]\n";
    return 2;
  }
  using Image = itk::Image<float, 3>;
  using Filter = itk::DinoregImageFilter<Image>;
  try {
    auto filter = Filter::New();
    const auto fixed = itk::ReadImage<Image>(arguments[1]);
    const auto moving = itk::ReadImage<Image>(arguments[2]);
    filter->SetFixedImage(fixed);
    filter->SetMovingImage(moving);
    if (count > 5) filter->SetPython(arguments[5]);
    filter->Update();
    itk::WriteImage(filter->GetWarpedImage(), arguments[3], true);
    itk::WriteImage(filter->GetDisplacementField(), arguments[4], true);
    std::cout << (filter->GetTrusted() ? "trusted" : "not to be trusted") << "\n";
    return filter->GetTrusted() ? 0 : 9;
  } catch (const itk::ExceptionObject& error) {
    std::cerr << error.GetDescription() << "\n";
    return 1;
  }
}
